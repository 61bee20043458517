// Folders as Hugging Face's programs write them, for tests: by hand, from the format's description.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "model/config.h"
#include "test/support/files.h"

namespace train_qat::test {

// A tensor as its file has it.
struct FolderTensor {
    std::string dtype;  // F32, BF16, F16
    std::vector<int64_t> shape;
    std::string bytes = "";

    int64_t elements() const {
        int64_t product = 1;
        for (const int64_t extent : shape) product *= extent;
        return product;
    }
    int64_t element_bytes() const { return dtype == "F32" ? 4 : 2; }

    // By the formula of IEEE 754 and of bfloat16, in double precision.
    double value(int64_t i) const {
        if (dtype == "F32") {
            float number;
            std::memcpy(&number, bytes.data() + 4 * i, sizeof number);
            return number;
        }
        uint16_t bits;
        std::memcpy(&bits, bytes.data() + 2 * i, sizeof bits);
        const int mantissa_bits = dtype == "F16" ? 10 : 7, bias = dtype == "F16" ? 15 : 127;
        const int exponent = (bits & 0x7fff) >> mantissa_bits;
        const double fraction = std::ldexp(bits & ((1 << mantissa_bits) - 1), -mantissa_bits);
        const double size =
            exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
        return bits >> 15 ? -size : size;
    }
};
using FolderTensors = std::map<std::string, FolderTensor>;

// Bits that say a finite number of moderate size, also denormal float16 ones.
inline void randomize(FolderTensor& tensor, std::mt19937& engine) {
    tensor.bytes.clear();
    for (int64_t i = 0; i < tensor.elements(); ++i) {
        if (tensor.dtype == "F32") {
            const float number = static_cast<float>(engine() % 2001) / 1000.0f - 1.0f +
                                 1e-7f * static_cast<float>(engine() % 97);
            tensor.bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
            continue;
        }
        const uint32_t largest = 0x4000;  // 2 in both formats
        const uint32_t smallest = tensor.dtype == "F16" ? 0 : 0x3000;
        const auto bits =
            static_cast<uint16_t>(smallest + engine() % (largest - smallest) + (engine() % 2 << 15));
        tensor.bytes.append(reinterpret_cast<const char*>(&bits), sizeof bits);
    }
}

// The tensors of such a model, counted here anew.
inline FolderTensors folder_tensors(const ModelConfig& config, const std::string& dtype, uint32_t seed) {
    const int64_t width = config.width, queries = config.heads * config.head_dim,
                  keys = config.kv_heads * config.head_dim;
    FolderTensors tensors;
    const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
        tensors[name] = {dtype, std::move(shape)};
    };
    add("model.embed_tokens.weight", {config.vocabulary, width});
    add("model.norm.weight", {width});
    if (!config.tied) add("lm_head.weight", {config.vocabulary, width});
    for (int64_t layer = 0; layer < config.layers; ++layer) {
        const std::string prefix = "model.layers." + std::to_string(layer) + ".";
        add(prefix + "input_layernorm.weight", {width});
        add(prefix + "post_attention_layernorm.weight", {width});
        add(prefix + "self_attn.q_proj.weight", {queries, width});
        add(prefix + "self_attn.k_proj.weight", {keys, width});
        add(prefix + "self_attn.v_proj.weight", {keys, width});
        add(prefix + "self_attn.o_proj.weight", {width, queries});
        add(prefix + "mlp.gate_proj.weight", {config.ffn, width});
        add(prefix + "mlp.up_proj.weight", {config.ffn, width});
        add(prefix + "mlp.down_proj.weight", {width, config.ffn});
        if (config.attention_biases) {
            add(prefix + "self_attn.q_proj.bias", {queries});
            add(prefix + "self_attn.k_proj.bias", {keys});
            add(prefix + "self_attn.v_proj.bias", {keys});
        }
        if (config.head_norms) {
            add(prefix + "self_attn.q_norm.weight", {config.head_dim});
            add(prefix + "self_attn.k_norm.weight", {config.head_dim});
        }
    }
    std::mt19937 engine(seed);
    for (auto& [name, tensor] : tensors) randomize(tensor, engine);
    return tensors;
}

inline std::string safetensors_bytes_of(const FolderTensors& tensors) {
    nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
    std::string data;
    for (const auto& [name, tensor] : tensors) {
        header[name] = {{"dtype", tensor.dtype},
                        {"shape", tensor.shape},
                        {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
        data += tensor.bytes;
    }
    const std::string text = header.dump();
    const uint64_t length = text.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
}

inline nlohmann::json folder_config(const ModelConfig& config) {
    const char* type = config.head_norms ? "qwen3" : config.attention_biases ? "qwen2" : "llama";
    const char* class_name = config.head_norms         ? "Qwen3ForCausalLM"
                             : config.attention_biases ? "Qwen2ForCausalLM"
                                                       : "LlamaForCausalLM";
    return {{"architectures", {class_name}},
            {"model_type", type},
            {"hidden_act", "silu"},
            {"hidden_size", config.width},
            {"intermediate_size", config.ffn},
            {"num_hidden_layers", config.layers},
            {"num_attention_heads", config.heads},
            {"num_key_value_heads", config.kv_heads},
            {"head_dim", config.head_dim},
            {"vocab_size", config.vocabulary},
            {"max_position_embeddings", 2 * config.sequence_length},
            {"rms_norm_eps", config.norm_epsilon},
            {"rope_theta", config.rope_theta},
            {"tie_word_embeddings", config.tied},
            {"torch_dtype", "bfloat16"},
            {"transformers_version", "4.45.0"}};
}

// config.json and the weights, in one file or in several with an index. Returns the folder.
inline std::string write_folder(const TemporaryDirectory& directory, const std::string& name,
                                const nlohmann::json& config, const FolderTensors& tensors, int shards = 1) {
    const std::filesystem::path folder = directory / name;
    std::filesystem::create_directories(folder);
    write_bytes((folder / "config.json").string(), config.dump(2));
    if (shards == 1) {
        write_bytes((folder / "model.safetensors").string(), safetensors_bytes_of(tensors));
        return folder.string();
    }
    std::vector<FolderTensors> parts(static_cast<size_t>(shards));
    nlohmann::json map;
    size_t number = 0;
    for (const auto& [tensor_name, tensor] : tensors) {
        const size_t part = number++ % parts.size();
        parts[part][tensor_name] = tensor;
        map[tensor_name] = "part-" + std::to_string(part) + ".safetensors";
    }
    for (size_t part = 0; part < parts.size(); ++part)
        write_bytes((folder / ("part-" + std::to_string(part) + ".safetensors")).string(),
                    safetensors_bytes_of(parts[part]));
    write_bytes((folder / "model.safetensors.index.json").string(),
                nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
    return folder.string();
}

}  // namespace train_qat::test
