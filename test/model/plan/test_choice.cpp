// -b auto and -n auto against brute force, and the exact size of a packed model.
#include "model/plan/choice.h"

#include <cmath>
#include <random>

#include "model/parameters.h"
#include "model/plan/model_bytes.h"
#include "model/plan/plan.h"
#include "model/units.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/random_law.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Tensor by tensor, of the parameters that a run has.
int64_t bytes_of_parameters(const ModelConfig& config, double bits, int64_t group) {
    const std::unique_ptr<Backend> backend = make_cpu_backend(1);
    Arena arena;
    QuantizationConfig quantization;
    quantization.bits = bits, quantization.group = group;
    const Parameters parameters(config, quantization, DType::float32, *backend, arena, {});
    double sum = 0;
    for (const Parameter& parameter : parameters.all()) {
        const ParameterRows& rows = parameter.whole;
        const auto weights = static_cast<double>(rows.rows * rows.columns);
        if (parameter.is_vector)
            sum += 32 * weights;
        else
            sum +=
                parameter.bits * weights + (bits < 16 ? 16 * weights / static_cast<double>(rows.group) : 0);
    }
    return static_cast<int64_t>(std::ceil(sum / 8));
}

ChoiceRequest random_request(std::mt19937_64& random) {
    ChoiceRequest request;
    ScalingLaw law = random_law(random);
    law.fraction_by_loss = random() % 2 == 0;
    request.law = std::make_shared<const ScalingLaw>(law);
    request.tokens_per_step = 512;
    if (random() % 3 == 0) request.qat_fraction = uniform(random, 0.05, 0.9);
    return request;
}

double loss_of(const ChoiceRequest& request, const ModelConfig& config, double tokens, double bits) {
    const auto n = static_cast<double>(parameter_count(config));
    const double f =
        request.qat_fraction ? *request.qat_fraction : *request.law->optimal_fraction(n, tokens, bits);
    return quantized_loss(request.law->coefficients, n, (1 - f) * tokens, f * tokens, bits);
}

}  // namespace

TEST_CASE("the size of a packed model counts every tensor", "[choice]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    for (int i = 0; i < 20; ++i) {
        ConfigOverrides shape;
        shape.layers = 1 + random() % 3, shape.heads = 2, shape.kv_heads = 1 + random() % 2;
        shape.width = 64 * (1 + random() % 2), shape.ffn = 64 * (1 + random() % 5);
        const ModelConfig config = resolve_config("", 100 + random() % 300, 16, shape);
        for (const double bits : {1.0, 1.58, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 16.0})
            for (const int64_t group : {0, 32, 64})
                CHECK(packed_model_bytes(config, bits, group) == bytes_of_parameters(config, bits, group));
    }
    const ModelConfig narrow = resolve_config("", 100, 16, {1, 32, 2, 2, 64});
    CHECK(fits_group(narrow, 32));
    CHECK_FALSE(fits_group(narrow, 64));
    CHECK_THROWS_AS(packed_model_bytes(narrow, 4, 64), std::logic_error);
}

TEST_CASE("sizes in bytes are read in decimal units", "[choice]") {
    CHECK(parse_bytes("500MB", "-memory") == 500'000'000);
    CHECK(parse_bytes("1.5GB", "-memory") == 1'500'000'000);
    CHECK(parse_bytes("200KB", "-memory") == 200'000);
    CHECK(parse_bytes("200kb", "-memory") == 200'000);
    CHECK(parse_bytes("2TB", "-memory") == 2'000'000'000'000);
    CHECK(parse_bytes("123456", "-memory") == 123'456);
    for (const char* text :
         {"", "5M", "MB", "B", "-5MB", "5 MB", "1e6", "1.5", "0", "5MiB", "nan", "5BB", "9e9GB"})
        CHECK(mentions(error_of([&] { parse_bytes(text, "-memory"); }), {"-memory: cannot read", "500MB"}));
}

TEST_CASE("the bits chosen are the best of those that fit", "[choice]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    const ModelConfig config = resolve_config("400K", 1024, 64);
    for (int i = 0; i < 20; ++i) {
        ChoiceRequest request = random_request(random);
        const int64_t steps = 5000 + static_cast<int64_t>(random() % 20'000);
        const double tokens = static_cast<double>(steps * request.tokens_per_step);
        const int64_t smallest = packed_model_bytes(config, 1, 0), largest = packed_model_bytes(config, 8, 0);
        if (i > 0) request.memory = smallest + static_cast<int64_t>(random() % (largest - smallest));
        double least = INFINITY, best = 0;
        for (const double bits : {1.0, 1.58, 2.0, 3.0, 4.0, 5.0, 6.0}) {  // 8 is above the 6 fitted
            if (request.memory && packed_model_bytes(config, bits, 0) > *request.memory) continue;
            if (const double loss = loss_of(request, config, tokens, bits); loss < least)
                least = loss, best = bits;
        }
        const Choice choice = choose_bits(request, config, steps);
        CHECK(choice.chosen.bits == best);
        CHECK(choice.chosen.loss == least);
        CHECK(choice.of_bits.size() == 7);
        const std::string table = format_choice(choice, request);
        CHECK_THAT(table, contains_text("chosen"));
        CHECK((table.find("does not fit") != std::string::npos) ==
              (request.memory && packed_model_bytes(config, 6, 0) > *request.memory));
    }
}

TEST_CASE("where no bits fit, one line says the smallest size", "[choice]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    ChoiceRequest request = random_request(random);
    const ModelConfig config = resolve_config("400K", 1024, 64);
    request.memory = packed_model_bytes(config, 1, 0) - 1;
    const auto error = [&] { return error_of([&] { choose_bits(request, config, 20'000); }); };
    CHECK(mentions(error(), {"-memory ", format_exact(*request.memory + 1) + " bytes", "1 bits"}));
    request.memory = *request.memory + 1;
    CHECK(choose_bits(request, config, 20'000).chosen.bits == 1);

    request.qat_fraction = 1;  // without full-precision tokens
    CHECK(mentions(error(), {"-qat_frac", "law.json", "no loss"}));
    ScalingLaw law = *request.law;
    law.fitted.bits = {6.5, 7};
    request.law = std::make_shared<const ScalingLaw>(law);
    CHECK(mentions(error(), {"-b auto", "law.json", "6.5 to 7"}));
}

TEST_CASE("the size chosen is the best of all that could be", "[choice]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    // The shapes, found without the search: sizes in three digits, eight to a doubling.
    std::vector<ModelConfig> shapes;
    for (int k = 8 * 14; k < 8 * 25; ++k) {
        const double size = std::exp2(k / 8.0), digit = std::pow(10, std::floor(std::log10(size)) - 2);
        const auto rounded = static_cast<int64_t>(std::llround(std::round(size / digit) * digit));
        try {
            shapes.push_back(resolve_config(std::to_string(rounded), 1024, 64));
        } catch (const std::runtime_error&) {
            continue;  // too small for the vocabulary
        }
    }
    for (int i = 0; i < 6; ++i) {
        ChoiceRequest request = random_request(random);
        ScalingLaw law = *request.law;
        law.fraction_by_loss = true;  // the other one has no prediction for the largest sizes
        request.law = std::make_shared<const ScalingLaw>(law);
        const double flops = std::exp(uniform(random, std::log(1e12), std::log(1e15)));
        if (i % 2 == 0) request.memory = static_cast<int64_t>(uniform(random, 60e3, 400e3));
        if (i % 3 == 0) request.bits = 4;
        double least = INFINITY, best_bits = 0;
        int64_t best_size = 0;
        for (const double bits : {1.0, 1.58, 2.0, 3.0, 4.0, 5.0, 6.0}) {
            if (request.bits && bits != *request.bits) continue;
            for (const ModelConfig& shape : shapes) {
                const double steps = std::round(flops / (training_flops_per_token(shape) * 512));
                if (static_cast<double>(parameter_count(shape)) > 30e6 || steps < 1) continue;
                if (request.memory && packed_model_bytes(shape, bits, 0) > *request.memory) continue;
                const double loss = loss_of(request, shape, steps * 512, bits);
                if (loss < least) least = loss, best_bits = bits, best_size = parameter_count(shape);
            }
        }
        const Choice choice = choose_size(request, flops, 1024, 64, {});
        CHECK(choice.chosen.loss == least);
        CHECK(choice.chosen.bits == best_bits);
        CHECK(parameter_count(choice.chosen.config) == best_size);
        CHECK(choice.of_bits.size() == (request.bits ? 1 : 7));
        // The text of the size gives the same model again.
        CHECK(parameter_count(resolve_config(choice.chosen.size, 1024, 64)) == best_size);
        const double spent = training_flops_per_token(choice.chosen.config) * 512 * choice.chosen.steps;
        CHECK(spent == Approx(flops).margin(training_flops_per_token(choice.chosen.config) * 256));
    }
}

TEST_CASE("sizes that cannot be are one line", "[choice]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    ChoiceRequest request = random_request(random);
    request.qat_fraction = 0.3;
    const auto error = [&](double flops, int64_t vocabulary, const ConfigOverrides& shape = {}) {
        return error_of([&] { choose_size(request, flops, vocabulary, 64, shape); });
    };
    CHECK(mentions(error(1e5, 1024), {"-flops 100000", "smallest model"}));
    CHECK(mentions(error(1e14, 2'000'000), {"-n auto", "vocabulary 2000000", "law.json"}));
    ConfigOverrides heads;
    heads.heads = 3, heads.kv_heads = 2;
    CHECK(mentions(error(1e14, 1024, heads), {"-kv_heads 2"}));
    request.memory = 1000;
    CHECK(mentions(error(1e14, 1024), {"-memory 1000", "vocabulary 1024", "at least"}));
}

TEST_CASE("a search that ends far from what was fitted says so", "[choice]") {
    ScalingLaw law;
    law.path = "law.json";
    law.fitted = {9, 1024, "classic", {50e3, 60e3}, {1e6, 2e6}, {1, 9}, {0.1, 0.5}, {2, 4}, std::nullopt};
    law.coefficients.zeta = 1, law.coefficients.eta = 0.5;  // larger is better, tokens do not count
    law.samples.assign(20, {law.coefficients, 0, 0, 0});
    ChoiceRequest request;
    request.law = std::make_shared<const ScalingLaw>(law);
    request.tokens_per_step = 64;
    const Choice choice = choose_size(request, 1e15, 1024, 64, {});
    CHECK(parameter_count(choice.chosen.config) > 1'600'000);
    CHECK(parameter_count(choice.chosen.config) <= 1'800'000);
    CHECK(choice.chosen.bits == 2);  // of equal losses the fewest
    REQUIRE(choice.notes.size() == 1);
    CHECK_THAT(format_choice(choice, request), contains_text("larger models were not looked at"));
    CHECK_THAT(format_choice(choice, request), contains_text("N, D"));
    request.memory = 300'000;
    CHECK(choose_size(request, 1e15, 1024, 64, {}).notes.empty());
}
