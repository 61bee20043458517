#include "model/import/hugging_face_config.h"

#include <functional>
#include <vector>

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/hugging_face_folder.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

using Json = nlohmann::json;

// As newer versions of transformers write it.
Json usual() {
    return Json::parse(
        R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "dtype": "float32", "eos_token_id": [2, 7], "head_dim": 10, "hidden_act": "silu",
        "hidden_size": 44, "initializer_range": 0.02, "intermediate_size": 52, "max_position_embeddings": 64,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 6, "num_hidden_layers": 3,
        "num_key_value_heads": 2, "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "tie_word_embeddings": true,
        "transformers_version": "5.24.0", "use_cache": true, "vocab_size": 4099})");
}

const Json llama3 = {{"rope_type", "llama3"},
                     {"factor", 8.0},
                     {"low_freq_factor", 1.0},
                     {"high_freq_factor", 4.0},
                     {"original_max_position_embeddings", 8192}};

ModelConfig read(const Json& json, int64_t sequence_length = 64) {
    const TemporaryDirectory directory;
    directory.write("config.json", json.dump());
    return read_hugging_face_config(directory / "", sequence_length);
}

ModelConfig read_with(const std::function<void(Json&)>& change, int64_t sequence_length = 64) {
    Json json = usual();
    change(json);
    return read(json, sequence_length);
}

std::string refusal(const std::function<void(Json&)>& change, int64_t sequence_length = 64) {
    return error_of<std::runtime_error>([&] { read_with(change, sequence_length); });
}

std::string refusal_of(const std::string& key, const Json& value) {
    return refusal([&](Json& json) { json[key] = value; });
}

}  // namespace

TEST_CASE("config.json says what a Llama model is", "[import]") {
    const ModelConfig config = read(usual(), 33);
    CHECK(config.layers == 3);
    CHECK(config.width == 44);
    CHECK(config.heads == 6);
    CHECK(config.kv_heads == 2);
    CHECK(config.head_dim == 10);
    CHECK(config.ffn == 52);
    CHECK(config.vocabulary == 4099);
    CHECK(config.sequence_length == 33);
    CHECK(config.tied);
    CHECK_FALSE(config.attention_biases);
    CHECK_FALSE(config.head_norms);
    CHECK(config.rope_theta == 500000.0);
    CHECK(config.rope_scaling == RopeScaling{});
    CHECK(config.norm_epsilon == 1e-6);
    CHECK(config.requested_parameters == 0);
}

TEST_CASE("what a config.json leaves out is what transformers takes for it", "[import]") {
    const ModelConfig config = read_with([](Json& json) {
        for (const char* name :
             {"num_key_value_heads", "head_dim", "tie_word_embeddings", "rope_parameters", "architectures",
              "hidden_act", "attention_bias", "mlp_bias", "pretraining_tp"})
            json.erase(name);
        json["hidden_size"] = 48;
    });
    CHECK(config.kv_heads == 6);
    CHECK(config.head_dim == 8);
    CHECK_FALSE(config.tied);
    CHECK(config.rope_theta == 10000.0);
    CHECK(read_with([](Json& json) { json["num_key_value_heads"] = nullptr; }).kv_heads == 6);
}

TEST_CASE("Qwen2 has biases, Qwen3 norms of heads", "[import]") {
    const auto qwen = [](Json& json, const char* type, const char* class_name) {
        json["model_type"] = type;
        json["architectures"] = {class_name};
        json["layer_types"] = {"full_attention", "full_attention", "full_attention"};
        json["use_sliding_window"] = false;
        json["sliding_window"] = 32768;
        json["max_window_layers"] = 28;
    };
    const ModelConfig second = read_with([&](Json& json) {
        qwen(json, "qwen2", "Qwen2ForCausalLM");
        json.erase("attention_bias");
        json.erase("head_dim");
        json["hidden_size"] = 48;
    });
    CHECK(second.attention_biases);
    CHECK_FALSE(second.head_norms);
    CHECK(second.head_dim == 8);
    const auto third = [&](Json& json) { qwen(json, "qwen3", "Qwen3ForCausalLM"); };
    CHECK(read_with(third).head_norms);
    CHECK_FALSE(read_with(third).attention_biases);
    CHECK(mentions(refusal([&](Json& json) { third(json), json.erase("head_dim"); }), {"head_dim"}));
    CHECK(mentions(refusal([&](Json& json) { third(json), json["attention_bias"] = true; }),
                   {"attention_bias", "true"}));
    CHECK(mentions(refusal([&](Json& json) { third(json), json["use_sliding_window"] = true; }),
                   {"use_sliding_window", "true"}));
    CHECK(mentions(refusal([&](Json& json) { third(json), json["layer_types"][1] = "sliding_attention"; }),
                   {"layer_types", "sliding_attention"}));
    CHECK(mentions(refusal([&](Json& json) { third(json), json["architectures"] = {"Qwen2ForCausalLM"}; }),
                   {"architectures", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}));
}

TEST_CASE("rotations are read in the older and the newer form", "[import]") {
    const RopeScaling scaling{8, 1, 4, 8192};
    Json newer = llama3;
    newer["rope_theta"] = 1234.5;
    const ModelConfig by_newer = read_with([&](Json& json) { json["rope_parameters"] = newer; });
    CHECK(by_newer.rope_theta == 1234.5);
    CHECK(by_newer.rope_scaling == scaling);
    const auto older = [](const Json& rope_scaling) {
        return read_with([&](Json& json) {
            json.erase("rope_parameters");
            json["rope_theta"] = 1000000;
            json["rope_scaling"] = rope_scaling;
        });
    };
    CHECK(older(llama3).rope_scaling == scaling);
    CHECK(older(llama3).rope_theta == 1e6);
    CHECK(older(nullptr).rope_scaling == RopeScaling{});
    CHECK(older({{"type", "default"}}).rope_scaling == RopeScaling{});
    CHECK(mentions(error_of([&] {
                       older({{"type", "linear"}, {"factor", 2.0}});
                   }),
                   {"rope_scaling.type", "linear"}));
    CHECK(mentions(error_of([&] {
                       older({{"rope_type", "yarn"}, {"factor", 2.0}});
                   }),
                   {"rope_scaling.rope_type", "yarn"}));
    for (const char* name :
         {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
        Json incomplete = llama3;
        incomplete.erase(name);
        CHECK(mentions(error_of([&] { older(incomplete); }), {"rope_scaling", name}));
    }
    Json crossed = llama3;
    crossed["low_freq_factor"] = 4.0;
    CHECK(mentions(error_of([&] { older(crossed); }), {"high_freq_factor", "4.0"}));
    Json more = llama3;
    more["attention_factor"] = 2.0;
    CHECK(mentions(error_of([&] { older(more); }), {"rope_scaling.attention_factor", "2.0"}));
    CHECK(mentions(refusal([](Json& json) { json["rope_theta"] = 7; }), {"rope_theta"}));
    CHECK(mentions(refusal([](Json& json) { json["rope_scaling"] = llama3; }), {"rope_scaling"}));
    CHECK(read_with([](Json& json) { json["rope_theta"] = 500000; }).rope_theta == 500000.0);
}

TEST_CASE("what cannot be trained is refused by name and value", "[import]") {
    const std::vector<std::pair<std::string, Json>> refused = {
        {"model_type", "mistral"},
        {"model_type", 7},
        {"architectures", {"LlamaModel"}},
        {"hidden_act", "gelu"},
        {"mlp_bias", true},
        {"attention_bias", true},
        {"use_sliding_window", true},
        {"sliding_window", 4096},
        {"layer_types", {"sliding_attention"}},
        {"layer_types", Json::object()},
        {"layer_types", "full_attention"},
        {"layer_types", {{"0", "full_attention"}}},
        {"layer_types", true},
        {"layer_types", {{"full_attention"}}},
        {"quantization_config", {{"bits", 4}}},
        {"pretraining_tp", 2},
        {"partial_rotary_factor", 0.5},
        {"rope_interleaved", true},
        {"is_encoder_decoder", true},
        {"rope_parameters", {{"rope_type", "dynamic"}}},
        {"rope_parameters", 7},
        {"hidden_size", 0},
        {"hidden_size", 43},
        {"hidden_size", "44"},
        {"hidden_size", 44.0},
        {"num_hidden_layers", -1},
        {"num_hidden_layers", 4000000000},
        {"num_key_value_heads", 4},
        {"head_dim", 7},
        {"head_dim", 258},
        {"vocab_size", nullptr},
        {"rms_norm_eps", 0},
        {"rms_norm_eps", "small"},
        {"tie_word_embeddings", "yes"},
        {"rope_theta", -1},
        {"residual_multiplier", 0.22},
        {"auto_map", {{"AutoModel", "modeling.py"}}}};
    for (const auto& [key, value] : refused) {
        const std::string error = refusal_of(key, value);
        INFO(key << " " << value << ": " << error);
        CHECK(mentions(error, {key.c_str(), "config.json"}));
        if (value.is_primitive() && !value.is_null()) CHECK(error.find(value.dump()) != std::string::npos);
    }
    CHECK(mentions(refusal_of("residual_multiplier", 0.22), {"remove it"}));
    for (const char* name : {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
                             "num_attention_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps"})
        CHECK(mentions(refusal([&](Json& json) { json.erase(name); }), {name, "missing"}));
    CHECK(mentions(refusal([](Json& json) { json.erase("head_dim"), json["num_attention_heads"] = 8; }),
                   {"hidden_size"}));
}

TEST_CASE("sequences are at most as long as the model knows positions", "[import]") {
    CHECK(read(usual(), 64).sequence_length == 64);
    CHECK(mentions(refusal([](Json&) {}, 65), {"-seq_len 65", "max_position_embeddings 64", "config.json"}));
}

TEST_CASE("a folder without a readable config.json is no model", "[import]") {
    const TemporaryDirectory directory;
    const auto error = [&] {
        return error_of<std::runtime_error>([&] { read_hugging_face_config(directory / "", 4); });
    };
    CHECK_FALSE(is_hugging_face_folder(directory / ""));
    CHECK(mentions(error(), {"config.json"}));
    for (const char* text : {"", "{", "[]", "7", "null", "\xff"}) {
        directory.write("config.json", text);
        CHECK(mentions(error(), {"config.json"}));
    }
    CHECK(is_hugging_face_folder(directory / ""));
    directory.write("manifest.json", "{}");
    CHECK_FALSE(is_hugging_face_folder(directory / ""));
}
