#include "model/job/model_settings.h"

#include "test/support/catch.h"

using namespace train_qat;

namespace {

nlohmann::json through_text(const nlohmann::ordered_json& settings) {
    return nlohmann::json::parse(settings.dump());
}

}  // namespace

TEST_CASE("a model comes back from its settings", "[settings]") {
    ConfigOverrides shape{3, 96, 5, 5, 128, 32};
    shape.untied = true;
    ModelConfig config = resolve_config("", 999, 77, shape);
    config.attention_biases = config.head_norms = true;
    config.rope_theta = 123456.5;
    config.norm_epsilon = 1e-6;
    config.rope_scaling = {8.0, 1.5, 3.5, 8192};
    const nlohmann::ordered_json settings = model_settings(config);
    CHECK(model_settings(model_of(through_text(settings))) == settings);
    config.rope_scaling = {};
    CHECK(model_of(through_text(model_settings(config))).rope_scaling == RopeScaling{});
}

TEST_CASE("settings that do not name what all models once shared are those of such a model", "[settings]") {
    const nlohmann::json old = {{"layers", 2}, {"width", 96}, {"heads", 6},    {"kv_heads", 2},
                                {"ffn", 128},  {"vocab", 99}, {"seq_len", 16}, {"b", 4.0}};
    const ModelConfig config = model_of(old);
    CHECK(config.head_dim == 16);
    CHECK(config.tied);
    CHECK_FALSE(config.attention_biases);
    CHECK_FALSE(config.head_norms);
    CHECK(config.rope_theta == 10000.0);
    CHECK(config.norm_epsilon == 1e-5);
    for (const char* name : {"layers", "width", "heads", "kv_heads", "ffn", "vocab", "seq_len"}) {
        nlohmann::json without = old;
        without.erase(name);
        CHECK_THROWS(model_of(without));
    }
}
