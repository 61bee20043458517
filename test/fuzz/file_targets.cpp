// Shards, files of tensors, manifests, tokenizers, tuning tables.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "data/loader.h"
#include "data/shard.h"
#include "data/shared_text.h"
#include "data/tokenizer.h"
#include "kernels/cuda/platform/tuning_table.h"
#include "model/storage/manifest.h"
#include "model/storage/safetensors.h"
#include "test/fuzz/targets.h"

namespace train_qat::fuzz {

namespace {

std::string shard(int32_t magic, int32_t version, int32_t tokens, int bytes_per_token) {
    std::string bytes(static_cast<size_t>(shard_header_bytes + tokens * bytes_per_token), '\1');
    const int32_t header[] = {magic, version, tokens, 300, 7, 0};
    std::memcpy(bytes.data(), header, sizeof header);
    return bytes;
}

std::string safetensors(const std::string& header, size_t data_bytes) {
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header +
           std::string(data_bytes, 'x');
}

void read_shard(const std::string&, const std::string& path) {
    const Shard shard(path);
    std::vector<int32_t> tokens(static_cast<size_t>(std::min<int64_t>(shard.token_count(), 64)));
    shard.copy(0, static_cast<int64_t>(tokens.size()), 300, tokens.data());
    find_shared_text({path}, {path});
    LoaderOptions options;
    options.sequence_length = 4;
    options.vocabulary_size = 300;
    DataLoader loader(path, options);
    std::vector<int32_t> inputs(8), targets(8);
    loader.next_batch(2, inputs.data(), targets.data());
    loader.fingerprint();
}

// Its tokens become text and ids again.
void use_tokenizer(const Tokenizer& tokenizer) {
    const std::vector<int32_t> ids = tokenizer.encode("Hello, w\xc3\xb6rld 12 \xff\n");
    tokenizer.decode(ids);
    for (int32_t id = 0; id < static_cast<int32_t>(std::min(tokenizer.vocabulary_size(), 8u)); ++id)
        tokenizer.bytes_of(id);
}

const char* const byte_level =
    R"({"version":"1.0","added_tokens":[{"id":5,"content":"<|end|>","special":true,"single_word":false,"lstrip":false,
"rstrip":false,"normalized":false}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,
"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE",
"dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,
"byte_fallback":false,"vocab":{"a":0,"b":1,"ab":2,"l":3,"o":4},"merges":["a b"]}})";

// One of the quickstart's kind: protobuf of a few pieces.
std::string sentencepiece() {
    const auto field = [](int number, const std::string& data) {
        return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(data.size())} + data;
    };
    std::string model;
    const std::pair<const char*, char> pieces[] = {{"<unk>", 2}, {"<s>", 3}, {"</s>", 3},
                                                   {"a", 1},     {"b", 1},   {"ab", 1}};
    for (const auto& [text, kind] : pieces)
        model += field(1, field(1, text) + std::string{0x15, 0, 0, '\x80', '\xbf', 0x18, kind});
    return model + field(2, {0x18, 2}) + field(3, "");  // how it was trained: byte-pair encoding
}

}  // namespace

std::vector<Target> file_targets() {
    const std::string tensors =
        R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})";
    const auto tokenizer = [](const std::string&, const std::string& path) {
        use_tokenizer(Tokenizer(path));
    };
    return {{"shard", {shard(20240520, 1, 40, 2), shard(20240801, 7, 40, 4)}, read_shard},
            {"safetensors",
             {safetensors(tensors, 32), safetensors("{}", 0)},
             [](const std::string&, const std::string& path) {
                 const SafetensorsFile file(path);
                 for (const std::string& name : file.names()) file.info(name);
             }},
            {"manifest",
             {manifest_text({12, {{"quantized", true}}, {{"model.safetensors", {123, 0x1234}}}})},
             [](const std::string&, const std::string& path) {
                 const std::string directory = std::filesystem::path(path).parent_path().string();
                 std::filesystem::rename(path, manifest_path(directory));
                 check_file_sizes(directory, read_manifest(directory));
             }},
            {"sentencepiece", {sentencepiece()}, tokenizer},
            {"tokenizer_json", {byte_level}, tokenizer},
            {"tuning_table",
             {"train_qat tuning table 1: a card\nforward_1_2_3 fused\nbackward cublaslt_7\n"},
             [](const std::string&, const std::string& path) {
                 TuningTable table(path, "a card");
                 table.find("backward");
                 table.set("new_key", "fused");
             }}};
}

}  // namespace train_qat::fuzz
