// tokenizer.json as Hugging Face has it. test/clients compares with its own library.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "test/support/catch.h"
#include "test/support/errors.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;
using nlohmann::json;

namespace {

using Ids = std::vector<int32_t>;

// UTF-8 of the character that stands for a byte in such files.
std::string written(int byte) {
    static const std::vector<int> codes = [] {
        std::vector<int> result;
        int next = 256;
        for (int b = 0; b < 256; ++b) {
            const bool prints = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
            result.push_back(prints ? b : next++);
        }
        return result;
    }();
    const int code = codes[byte];
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

std::string written(const std::string& bytes) {
    std::string text;
    for (const char c : bytes) text += written(static_cast<unsigned char>(c));
    return text;
}

// Token b is byte b; then the merges' results; then <end> and <note>.
json tokenizer_file_with(const std::vector<std::pair<std::string, std::string>>& merges) {
    json vocab, list = json::array();
    for (int b = 0; b < 256; ++b) vocab[written(b)] = b;
    for (const auto& [left, right] : merges) {
        vocab[written(left + right)] = vocab.size();
        list.push_back(written(left) + " " + written(right));
    }
    const int next = static_cast<int>(vocab.size());
    return {{"added_tokens",
             {{{"id", next}, {"content", "<end>"}, {"special", true}},
              {{"id", next + 1}, {"content", "<note>"}, {"special", false}}}},
            {"normalizer", nullptr},
            {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
            {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}};
}

const std::vector<std::pair<std::string, std::string>> merges = {
    {"l", "o"}, {" ", "t"}, {"lo", "lo"}, {"o", "l"}, {"\xc3", "\xa9"}};
constexpr int32_t lo = 256, space_t = 257, lolo = 258, e_acute = 260, end_token = 261, note_token = 262;

std::string error_of_file(const TemporaryDirectory& directory, const json& file) {
    const std::string path = directory.write("tokenizer.json", file.dump());
    return error_of([&] { Tokenizer{path}; });
}

}  // namespace

TEST_CASE("byte-level: earlier merges go first, words apart, whatever bytes there are", "[data]") {
    const TemporaryDirectory directory;
    const Tokenizer tokenizer(directory.write("tokenizer.json", tokenizer_file_with(merges).dump()));
    CHECK(tokenizer.vocabulary_size() == 263);
    CHECK(tokenizer.bos_id() == -1);
    CHECK(tokenizer.encode("").empty());
    CHECK(tokenizer.encode("lolo") == Ids{lolo});
    CHECK(tokenizer.encode("ololol") == Ids{'o', lolo, 'l'});
    CHECK(tokenizer.encode("lo lo t") == Ids{lo, ' ', lo, space_t});
    CHECK(tokenizer.encode("\xc3\xa9") == Ids{e_acute});
    CHECK(tokenizer.encode("e\xcc\x81") == Ids{'e', 0xcc, 0x81});  // no normalization unless asked for
    CHECK(tokenizer.encode("lo<end>lo<note><en") == Ids{lo, end_token, lo, note_token, '<', 'e', 'n'});
    for (const std::string& text :
         {std::string("a\0b", 3), std::string("tab\t\r\n  two"), std::string("\xf0\x9f\x98\x80!")})
        CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
    CHECK(tokenizer.decode({lo, end_token, note_token}) == "lo<note>");
    CHECK(tokenizer.bytes_of(lolo) == 4);
    CHECK(tokenizer.bytes_of(e_acute) == 2);
    CHECK(tokenizer.bytes_of(end_token) == 0);
    CHECK(tokenizer.bytes_of(note_token) == 6);
    CHECK(mentions(error_of([&] { tokenizer.decode({263}); }), {"tokenizer.json", "263"}));
    CHECK(mentions(error_of([&] { tokenizer.encode("\xff"); }), {"UTF-8"}));
}

TEST_CASE("byte-level: patterns, digits, normalization, words before merges, pairs as lists", "[data]") {
    const TemporaryDirectory directory;
    json file = tokenizer_file_with(merges);
    const auto encoded = [&](const std::string& text) {
        return Tokenizer(directory.write("tokenizer.json", file.dump())).encode(text);
    };
    const json bytes_alone = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
    file["pre_tokenizer"] = bytes_alone;
    CHECK(encoded("lo t") == Ids{lo, space_t});
    const json split = {{"type", "Split"},
                        {"pattern", {{"Regex", "l|\\p{N}{1,2}"}}},
                        {"behavior", "Isolated"},
                        {"invert", false}};
    file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, bytes_alone}}};
    CHECK(encoded("lolo") == Ids{'l', 'o', 'l', 'o'});
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", "o."}};
    CHECK(encoded("lo.lo") == Ids{'l', 'o', '.', lo});
    file["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}, {"individual_digits", true}};
    CHECK(encoded("lo12") == Ids{lo, '1', '2'});
    file["normalizer"] = {{"type", "NFC"}};
    CHECK(encoded("e\xcc\x81") == Ids{e_acute});
    file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}};
    CHECK(encoded("t") == Ids{space_t});
    // "ol" is a token: as a word by itself it is that one although "l" "o" would merge first elsewhere.
    file = tokenizer_file_with({{"l", "o"}, {"o", "l"}, {"ol", "o"}});
    CHECK(encoded("olo") == Ids{'o', 256});
    file["model"]["ignore_merges"] = true;
    CHECK(encoded("olo") == Ids{258});
    for (json& merge : file["model"]["merges"]) {
        const std::string text = merge;
        merge = {text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)};
    }
    CHECK(encoded("olol") == Ids{'o', 256, 'l'});
}

TEST_CASE("byte-level: a folder says where documents begin and end", "[data]") {
    const TemporaryDirectory directory;
    directory.write("tokenizer.json", tokenizer_file_with(merges).dump());
    const std::string folder = std::string(directory / "");
    directory.write("config.json", R"({"bos_token_id": 5, "eos_token_id": [261, 3]})");
    CHECK(Tokenizer(folder).bos_id() == 5);
    CHECK(Tokenizer(folder).eos_id() == end_token);
    directory.write("config.json", R"({"bos_token_id": 263, "eos_token_id": null})");
    CHECK(Tokenizer(folder).bos_id() == -1);
    CHECK(Tokenizer(folder).eos_id() == -1);
    directory.write("tokenizer_config.json", R"({"bos_token": null, "eos_token": {"content": "<end>"}})");
    CHECK(Tokenizer(folder).bos_id() == -1);
    CHECK(Tokenizer(folder).eos_id() == end_token);
    CHECK(tokenizer_hash(folder) == tokenizer_hash(directory / "tokenizer.json"));
}

TEST_CASE("byte-level: what would give other tokens is refused by name", "[data]") {
    const TemporaryDirectory directory;
    const auto refused = [&](const std::string& pointer, const json& value, const std::string& name) {
        json file = tokenizer_file_with(merges);
        file[json::json_pointer(pointer)] = value;
        const std::string error = error_of_file(directory, file);
        INFO(error);
        return mentions(error, {"tokenizer.json", name});
    };
    CHECK(refused("/model/type", "Unigram", "Unigram"));
    CHECK(refused("/model/byte_fallback", true, "byte_fallback"));
    CHECK(refused("/model/dropout", 0.1, "dropout"));
    CHECK(refused("/normalizer", {{"type", "Lowercase"}}, "Lowercase"));
    CHECK(refused("/pre_tokenizer", {{"type", "Metaspace"}}, "Metaspace"));
    CHECK(refused("/pre_tokenizer", nullptr, "ByteLevel"));
    CHECK(refused("/added_tokens/0/lstrip", true, "lstrip"));
    CHECK(refused("/pre_tokenizer",
                  {{"type", "Split"}, {"pattern", {{"Regex", "("}}}, {"behavior", "Isolated"}},
                  "pattern '('"));
    CHECK(refused("/model/merges/0", "x", "one part"));
    CHECK(refused("/model/merges/0", "x y", "result"));
    CHECK(refused("/model/vocab", {{"a", 0}}, "a byte has no token"));
    CHECK(refused("/added_tokens/0/id", -1, "range"));
    CHECK(refused("/added_tokens/0/id", 2000000000, "2000000000"));
    const std::string path = directory.write("tokenizer.json", "{\"model\": ");
    CHECK(mentions(error_of([&] { Tokenizer{path}; }), {"tokenizer.json", "not a tokenizer.json"}));
    CHECK(mentions(error_of([&] { Tokenizer(directory / "nowhere"); }), {"nowhere", "cannot read"}));
    const TemporaryDirectory empty;
    CHECK(mentions(error_of([&] { Tokenizer(std::string(empty / "")); }), {"neither a tokenizer.json"}));
}
