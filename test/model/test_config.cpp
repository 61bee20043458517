// Sizes: parameter counts, the presets, the rule for all other sizes, fixed values and their errors.
#include "model/config.h"

#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "test/support/catch.h"

using namespace train_qat;

namespace {

std::string error_of(const std::string& size, int64_t vocabulary, const ConfigOverrides& overrides = {}) {
    try {
        resolve_config(size, vocabulary, 128, overrides);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "no error";
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

double deviation(const ModelConfig& config, double wanted) {
    return static_cast<double>(parameter_count(config)) / wanted - 1.0;
}

// Oracle: rows and columns of every tensor of the model, one by one.
int64_t sum_of_tensors(const ModelConfig& config) {
    const int64_t C = config.width, F = config.ffn, d = config.head_dim;
    std::vector<std::pair<int64_t, int64_t>> tensors = {{config.vocabulary, C}, {1, C}};
    for (int64_t layer = 0; layer < config.layers; ++layer) {
        for (int64_t head = 0; head < config.heads; ++head) {
            tensors.insert(tensors.end(), {{d, C}, {C, d}});  // query, output
        }
        for (int64_t head = 0; head < config.kv_heads; ++head) {
            tensors.insert(tensors.end(), {{d, C}, {d, C}});  // key, value
        }
        tensors.insert(tensors.end(), {{F, C}, {F, C}, {C, F}, {1, C}, {1, C}});
    }
    int64_t total = 0;
    for (const auto& [rows, columns] : tensors) total += rows * columns;
    return total;
}

}  // namespace

TEST_CASE("parameter counts and operations of the 13.8M model match hand computation", "[config]") {
    const ModelConfig config = resolve_config("", 8192, 512, {6, 384, 6, {}, 1024});
    CHECK(config.head_dim == 64);
    CHECK(config.kv_heads == 6);
    CHECK(parameter_count(config) == 13'767'552);
    CHECK(linear_parameter_count(config) == 10'616'832);
    CHECK(embedding_parameter_count(config) == 3'145'728);
    CHECK(config.name == "13.8M");
    CHECK(config.requested_parameters == 0);
    // 2 * (10616832 + 3145728) + 4 * 6 * 384 * 256 = 27525120 + 2359296
    CHECK(forward_flops_per_token(config) == 29'884'416.0);
    CHECK(training_flops_per_token(config) == 6.0 * (10'616'832 + 3'145'728) + 12.0 * 6 * 384 * 512 / 2);
    CHECK(config.rope_theta == 10000.0f);
    CHECK(config.norm_epsilon == 1e-5);
}

TEST_CASE("parameter_count equals the sum over all tensors", "[config]") {
    std::mt19937 random(1);
    for (int trial = 0; trial < 100; ++trial) {
        ModelConfig config;
        config.layers = 1 + random() % 5;
        config.kv_heads = 1 + random() % 4;
        config.heads = config.kv_heads * (1 + random() % 3);
        config.head_dim = 2 * (1 + random() % 40);
        config.width = config.heads * config.head_dim;
        config.ffn = 1 + random() % 999;
        config.vocabulary = 1 + random() % 999;
        config.sequence_length = 1 + random() % 99;
        REQUIRE_NOTHROW(validate_config(config));
        REQUIRE(parameter_count(config) == sum_of_tensors(config));
        const int64_t norms = (2 * config.layers + 1) * config.width;
        REQUIRE(linear_parameter_count(config) + embedding_parameter_count(config) + norms ==
                parameter_count(config));
    }
}

TEST_CASE("presets are within 1% of their names and fit the export formats", "[config]") {
    for (const auto& [name, size] : {std::pair{"86M", 86e6}, std::pair{"396M", 396e6},
                                     std::pair{"759M", 759e6}, std::pair{"2.2B", 2.2e9}}) {
        const ModelConfig config = resolve_config(name, 32000, 2048);
        INFO(describe(config));
        CHECK(std::abs(deviation(config, size)) < 0.01);
        CHECK(sum_of_tensors(config) == parameter_count(config));
        CHECK(config.width % 256 == 0);
        CHECK(config.ffn % 256 == 0);
        CHECK((config.head_dim == 64 || config.head_dim == 128));
        CHECK(config.name == name);
        CHECK(config.sequence_length == 2048);
    }
    CHECK(resolve_config("396M", 32000, 64).width == 1280);
    CHECK(resolve_config("0.396B", 32000, 64).layers == resolve_config("396M", 32000, 64).layers);
}

TEST_CASE("a preset's name still means its size with another vocabulary", "[config]") {
    for (const int64_t vocabulary : {257, 4096, 8192, 50304, 65536, 128256}) {
        const ModelConfig config = resolve_config("86M", vocabulary, 64);
        INFO(describe(config));
        CHECK(std::abs(deviation(config, 86e6)) < size_tolerance);
    }
    CHECK(resolve_config("86M", 32100, 64).ffn == 2304);
}

TEST_CASE("the rule solves the 13.8M model", "[config]") {
    const ModelConfig config = resolve_config("13.8M", 8192, 512);
    CHECK(config.layers == 6);
    CHECK(config.width == 384);
    CHECK(config.heads == 6);
    CHECK(config.ffn == 1024);
}

TEST_CASE("the rule stays within 3% and grows with the request over sizes and vocabularies", "[config]") {
    for (const int64_t vocabulary : {256, 4096, 8192, 32000, 50304, 128256}) {
        int64_t previous = 0;
        for (double wanted = 150e3; wanted < 3e11; wanted *= 1.37) {
            if (wanted < 34.0 * static_cast<double>(vocabulary)) continue;  // the embedding alone is larger
            const auto requested = static_cast<int64_t>(wanted);
            const ModelConfig config = resolve_config(std::to_string(requested), vocabulary, 512);
            INFO(vocabulary << "\n" << describe(config));
            REQUIRE(std::abs(deviation(config, wanted)) < size_tolerance);
            REQUIRE(parameter_count(config) > previous);
            REQUIRE(config.heads * config.head_dim == config.width);
            REQUIRE(config.width % 32 == 0);
            REQUIRE(config.ffn % 32 == 0);
            REQUIRE(config.ffn >= 1.5 * config.width);
            REQUIRE(config.ffn <= 4 * config.width);
            previous = parameter_count(config);
        }
    }
}

TEST_CASE("solved shapes have sensible proportions and heads when the embedding leaves room", "[config]") {
    for (const char* size :
         {"10M", "13.8M", "31M", "125M", "350M", "0.5B", "1.1B", "3B", "7B", "13B", "70B"}) {
        const ModelConfig config = resolve_config(size, 8192, 512);
        INFO(describe(config));
        const double aspect = static_cast<double>(config.width) / static_cast<double>(config.layers);
        CHECK(aspect > 40);
        CHECK(aspect < 160);
        CHECK(config.head_dim == (config.width < 1536 ? 64 : 128));
        CHECK(config.ffn % 128 == 0);
        if (config.width >= 512) CHECK(config.width % 256 == 0);
    }
    CHECK(resolve_config("120000", 256, 64).head_dim == 32);
}

TEST_CASE("a solved shape does not depend on anything but its arguments", "[config]") {
    const std::string first = describe(resolve_config("47.3M", 5000, 96));
    CHECK(describe(resolve_config("47.3M", 5000, 96)) == first);
    CHECK(describe(resolve_config("47.3M", 5000, 96, {{}, {}, {}, {}, {}})) == first);
}

TEST_CASE("fixed values replace solved ones and the rest is solved around them", "[config]") {
    ModelConfig config = resolve_config("86M", 32000, 512, {12, {}, {}, {}, {}});
    CHECK(config.layers == 12);
    CHECK(std::abs(deviation(config, 86e6)) < size_tolerance);

    config = resolve_config("86M", 8192, 512, {{}, 512, {}, {}, {}});
    CHECK(config.width == 512);
    CHECK(std::abs(deviation(config, 86e6)) < size_tolerance);

    config = resolve_config("86M", 8192, 512, {{}, {}, 16, 4, 2048});
    CHECK(config.heads == 16);
    CHECK(config.kv_heads == 4);
    CHECK(config.ffn == 2048);
    CHECK(config.head_dim * 16 == config.width);

    config = resolve_config("759M", 32000, 512, {{}, {}, {}, 4, {}});
    CHECK(config.kv_heads == 4);
    CHECK(config.heads % 4 == 0);
    CHECK(std::abs(deviation(config, 759e6)) < size_tolerance);

    // Everything fixed: the size asked for yields and the text says by how much.
    config = resolve_config("86M", 8192, 512, {6, 384, 6, {}, 1024});
    CHECK(parameter_count(config) == 13'767'552);
    CHECK(contains(describe(config), "-83.99%"));
    CHECK(contains(describe(config), "nearest"));
}

TEST_CASE("a shape without a size takes the rule's heads and ffn where they are not fixed", "[config]") {
    ModelConfig config = resolve_config("", 1000, 64, {2, 384, {}, {}, {}});
    CHECK(config.heads == 6);
    CHECK(config.ffn == 1024);
    config = resolve_config("", 1000, 64, {2, 100, {}, {}, {}});
    CHECK(config.head_dim == 20);  // the largest even divisor of 100 up to 32
    CHECK(config.heads == 5);
    config = resolve_config("", 1000, 64, {1, 256, {}, 8, {}});
    CHECK(config.heads == 8);  // head dimension 32: 4 heads of 64 are no multiple of 8
    config = resolve_config("", 1, 1, {1, 2, 1, 1, 1});
    CHECK(parameter_count(config) == 2 + 4 * 4 + 3 * 2 + 3 * 2);
}

TEST_CASE("errors of sizes name the flag and give numbers", "[config]") {
    const std::string small = error_of("120000", 32000);
    CHECK(contains(small, "-n 120000"));
    CHECK(contains(small, "vocabulary 32000"));
    CHECK(contains(small, "1,024,000"));     // 32 * 32000
    CHECK(contains(small, "1,034,336"));     // one layer of width 32 on top
    CHECK(contains(small, "at most 1875"));  // 120000 / 64
    CHECK(small.find('\n') == std::string::npos);
    CHECK(contains(error_of("100", 32000), "too small"));
    CHECK_FALSE(contains(error_of("100", 32000), "smaller vocabulary"));
    CHECK(contains(error_of("900T", 32000), "too large"));
    CHECK(contains(error_of("", 32000), "-n is missing"));
    CHECK(contains(error_of("", 32000, {6, {}, 6, {}, 1024}), "-width"));
    CHECK(contains(error_of("8X", 32000), "-n: cannot read '8X'"));
    CHECK(contains(error_of("1M", 0), "vocabulary"));
    CHECK_THROWS_WITH(resolve_config("1M", 256, 0), Catch::Matchers::Contains("sequence length"));
    // The suggestion must work.
    CHECK_NOTHROW(resolve_config("120000", 1875, 64));
}

TEST_CASE("errors of fixed values name their flag", "[config]") {
    const auto fixed = [](ConfigOverrides overrides) { return error_of("10M", 1000, overrides); };
    CHECK(contains(fixed({0, {}, {}, {}, {}}), "-layers 0"));
    CHECK(contains(fixed({{}, -4, {}, {}, {}}), "-width -4"));
    CHECK(contains(fixed({{}, {}, 0, {}, {}}), "-heads 0"));
    CHECK(contains(fixed({{}, {}, {}, 0, {}}), "-kv_heads 0"));
    CHECK(contains(fixed({{}, {}, {}, {}, 0}), "-ffn 0"));
    CHECK(contains(fixed({{}, {}, {}, {}, 2'000'000}), "at most"));
    CHECK(contains(fixed({{}, 384, 7, {}, {}}), "-heads 7: must divide the width 384"));
    CHECK(contains(fixed({{}, 384, 1, {}, {}}), "head dimension of 384"));
    CHECK(contains(fixed({{}, 384, 128, {}, {}}), "must be even"));
    CHECK(contains(fixed({{}, 385, {}, {}, {}}), "-width 385"));
    CHECK(contains(fixed({{}, {}, 6, 4, {}}), "-kv_heads 4: must divide -heads 6"));
    CHECK(contains(fixed({{}, 384, {}, 5, {}}), "-kv_heads 5"));
    CHECK(contains(fixed({{}, {}, 30011, {}, {}}), "-heads"));
    CHECK(contains(error_of("", 1000, {2, 384, 7, {}, 64}), "-heads 7"));

    ModelConfig broken = resolve_config("", 8192, 512, {6, 384, 6, {}, 1024});
    broken.head_dim = 33;
    CHECK_THROWS_WITH(validate_config(broken), Catch::Matchers::Contains("-head_dim 33: must be even"));
    broken = resolve_config("", 8192, 512, {6, 384, 6, {}, 1024});
    broken.kv_heads = 4;
    CHECK_THROWS_WITH(validate_config(broken), Catch::Matchers::Contains("-kv_heads 4"));
}

TEST_CASE("heads may be larger or smaller than their share of the width", "[config]") {
    ConfigOverrides shape{6, 384, 5, {}, 1024, 128};
    const ModelConfig config = resolve_config("", 8192, 512, shape);
    CHECK(config.heads == 5);
    CHECK(config.head_dim == 128);
    CHECK(linear_parameter_count(config) == 6 * (4 * 5 * 128 * 384 + 3 * 1024 * 384));
    shape.heads = {};
    CHECK(resolve_config("", 8192, 512, shape).heads == 3);
    shape.head_dim = 100;
    CHECK(contains(error_of("", 8192, shape), "-head_dim 100: does not divide the width 384; give -heads"));
    shape.head_dim = 258;
    CHECK(contains(error_of("", 8192, shape), "-head_dim 258: must be even and at most 256"));
    ConfigOverrides heads;
    heads.head_dim = 64;
    CHECK(resolve_config("13.8M", 8192, 512, heads).head_dim == 64);
}

TEST_CASE("an output head of its own counts, and so do biases and norms of heads", "[config]") {
    ConfigOverrides shape{2, 96, 6, 2, 128};
    const ModelConfig tied = resolve_config("", 1000, 64, shape);
    shape.untied = true;
    ModelConfig config = resolve_config("", 1000, 64, shape);
    CHECK_FALSE(config.tied);
    CHECK(parameter_count(config) == parameter_count(tied) + 1000 * 96);
    CHECK(forward_flops_per_token(config) == forward_flops_per_token(tied));
    config.attention_biases = config.head_norms = true;
    CHECK(parameter_count(config) == parameter_count(tied) + 1000 * 96 + 2 * ((6 + 2 * 2) * 16 + 2 * 16));
}

TEST_CASE("rotations are those of Llama 2, and stretched as those of Llama 3", "[config]") {
    ModelConfig config = resolve_config("", 1000, 300, {2, 96, 3, {}, 128});
    const int64_t half = config.head_dim / 2;
    const auto angle = [&](int64_t t, int64_t pair) {
        std::vector<float> cosines(300 * half), sines(cosines.size());
        rotations(config, cosines.data(), sines.data());
        return std::atan2(sines[t * half + pair], cosines[t * half + pair]);
    };
    CHECK(angle(3, 0) == Approx(3.0));
    CHECK(angle(299, 5) == Approx(std::remainder(299 * std::pow(10000.0, -10.0 / 32), 2 * M_PI)));
    // Wave lengths 2 pi theta^(2i/32): the last pair's, 35,000, is above 256 / 1, the first's below 256 / 4.
    config.rope_scaling = {8.0, 1.0, 4.0, 256};
    CHECK(angle(3, 0) == Approx(3.0));
    CHECK(angle(299, 15) == Approx(299 * std::pow(10000.0, -30.0 / 32) / 8));
    // Between: 2 pi 10000^(10/32) = 111.7 is 2.29 turns of 256, a share of 0.430 stays.
    const double frequency = std::pow(10000.0, -10.0 / 32);
    const double kept = (256 * frequency / (2 * M_PI) - 1) / 3;
    CHECK(kept == Approx(0.43).margin(0.01));
    CHECK(angle(40, 5) == Approx(40 * (kept * frequency + (1 - kept) * frequency / 8)));
}

TEST_CASE("describe states the resolved shape and exact counts", "[config]") {
    const std::string text = describe(resolve_config("", 8192, 512, {6, 384, 6, 2, 1024}));
    for (const char* part :
         {"6 x 64", "kv heads         2", "1024", "8192", "embedding      3,145,728", "linears"}) {
        INFO(part << "\n" << text);
        CHECK(contains(text, part));
    }
    CHECK(contains(describe(resolve_config("1.5M", 32000, 64)), "smaller vocabulary"));
    CHECK_FALSE(contains(describe(resolve_config("86M", 32000, 64)), "smaller vocabulary"));
}
