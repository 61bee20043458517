// Softmax cross entropy and its gradient.
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Sizes {
    int64_t M, V;
};

std::vector<Sizes> sizes(uint64_t seed) {
    Random random(seed);
    return affordable(std::vector<Sizes>{{1, 1},
                                         {1, 3},
                                         {5, 7},
                                         {3, 64},
                                         {33, 65},
                                         {257, 100},
                                         {19, 4099},
                                         {2, 32003},
                                         {random.integer(1, 100), random.integer(1, 2000)}},
                      20000, [](const Sizes& s) { return s.M * s.V; });
}

// What logits and their gradient may be: of two types, or of one and then also in one place.
struct Types {
    DType d_logits, logits;
    bool in_place;
};

std::vector<Types> kinds() {
    std::vector<Types> result;
    for (DType type : compute_types()) {
        result.push_back({type, DType::float32, false});
        if (type != DType::float32) result.push_back({type, type, false});
        result.push_back({type, type, true});
    }
    return result;
}

std::string text(const Types& types) {
    return std::string(name_of(types.logits)) + " to " + name_of(types.d_logits) +
           (types.in_place ? ", in place" : "");
}

std::string text(const Sizes& s, uint64_t seed, const Types& types) {
    return text(types) + ", seed " + std::to_string(seed) + ", M " + std::to_string(s.M) + " V " +
           std::to_string(s.V);
}

// Losses and d_logits of one call.
struct Outputs {
    Array losses, d_logits;
    std::string damage;
};

Outputs run(Backend& backend, const Array& logits, const Array& targets, const Array& column_scale,
            double factor, const Types& types, int64_t V, bool gradient = true) {
    const auto M = static_cast<int64_t>(targets.size());
    Bench bench(backend);
    const Tensor losses = bench.output("losses", DType::float32, {M});
    Tensor in, d_logits;
    if (types.in_place && gradient)
        in = d_logits = bench.update("logits", logits, types.logits, {M, V});
    else
        in = bench.input("logits", logits, types.logits, {M, V});
    if (!types.in_place && gradient) d_logits = bench.output("d_logits", types.d_logits, {M, V});
    backend.cross_entropy(
        {.losses = losses,
         .d_logits = d_logits,
         .logits = in,
         .targets = bench.input("targets", targets, DType::int32, {M}),
         .column_scale = bench.optional_input("column_scale", column_scale, DType::float32, {V}),
         .gradient_factor = static_cast<float>(factor)});
    return {bench.read(losses), gradient ? bench.read(d_logits) : Array(), bench.damage()};
}

// A float32 sum of V positive terms: its rounding errors are no random walk around zero, so four times the
// usual.
double denominator_error(int64_t V) {
    return 4 * float32_sum(V);
}

// Besides: an exponential that may be off by a few units in the last place, of the difference between logits
// of about 10 and a logarithmic denominator rounded to float32.
double gradient_slack(int64_t V) {
    return denominator_error(V) + 0x1p-19;
}

constexpr double loss_slack = 0x1p-21;

// The logarithm turns the relative error of the denominator into an absolute one.
reference::Result loss_bound(reference::Result losses, int64_t V) {
    for (double& magnitude : losses.magnitude) magnitude += denominator_error(V) / loss_slack;
    return losses;
}

}  // namespace

TEST_CASE("cross_entropy equals the double-precision formula", "[cross_entropy][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (const Types& types : kinds()) {
            for (const Sizes& s : sizes(seed)) {
                for (bool scaled : {false, true}) {
                    Random random(seed + 80);
                    const Array logits = random.normals(s.M * s.V, types.logits, 3);
                    const Array targets = random.tokens(s.M, s.V);
                    const Array column_scale = scaled ? random.scales(s.V, 0.1) : Array();
                    const double factor = static_cast<float>(1.0 / 1000);
                    const reference::CrossEntropy expected =
                        reference::cross_entropy(reference::scale_columns(logits, column_scale), targets,
                                                 column_scale, factor, s.M, s.V);
                    for (const BackendUnderTest& device : backends_under_test(types.d_logits)) {
                        INFO(device.name << " " << text(s, seed, types) << ", scaled " << scaled);
                        const Outputs actual =
                            run(*device.backend, logits, targets, column_scale, factor, types, s.V);
                        CHECK(difference(actual.losses, loss_bound(expected.losses, s.V), DType::float32,
                                         loss_slack) == "");
                        CHECK(difference(actual.d_logits, expected.d_logits, types.d_logits,
                                         gradient_slack(s.V)) == "");
                        CHECK(actual.damage == "");
                        // In place and apart, and on all backends of a device.
                        const Types apart{types.d_logits, types.logits, false};
                        const std::string label = text(s, seed, apart) + (scaled ? " scaled" : "");
                        CHECK(same.check(device, label + " losses", actual.losses) == "");
                        CHECK(same.check(device, label + " d_logits", actual.d_logits) == "");
                        // Without d_logits: the same losses.
                        const Outputs loss_only =
                            run(*device.backend, logits, targets, column_scale, factor, types, s.V, false);
                        CHECK(inequality(loss_only.losses, actual.losses) == "");
                        CHECK(loss_only.damage == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("the oracle of cross entropy has the right gradient", "[cross_entropy][oracle]") {
    const int64_t M = 4, V = 11;
    Random random(81);
    const Array logits = random.normals(M * V), targets = random.tokens(M, V);
    const auto loss = [&](const Array& x) {
        return reference::dot(Array(M, 0.25), reference::cross_entropy(x, targets, {}, 1, M, V).losses.value);
    };
    CHECK(
        reference::relative_distance(reference::cross_entropy(logits, targets, {}, 0.25, M, V).d_logits.value,
                                     reference::numerical_gradient(loss, logits)) < 1e-8);
}

TEST_CASE("equal logits lose log V, whatever their size", "[cross_entropy][device]") {
    for (const Types& types : kinds()) {
        for (int64_t V : {1, 2, 3, 7, 1000}) {
            for (double logit : {0.0, 1e4, -1e4, 1e30}) {
                for (const BackendUnderTest& device : backends_under_test(types.d_logits)) {
                    INFO(device.name << " " << text(types) << ", V " << V << ", logit " << logit);
                    const Array logits = reference::rounded(types.logits, Array(2 * V, logit));
                    const auto last = static_cast<double>(V - 1);
                    const Outputs out = run(*device.backend, logits, {0, last}, {}, 1, types, V);
                    // A float32 of the size of the logits may carry the logarithm.
                    const double error = 1e-6 + std::abs(logits[0]) * 0x1p-23;
                    CHECK(std::abs(out.losses[0] - std::log(V)) <= error);
                    CHECK(std::abs(out.losses[1] - std::log(V)) <= error);
                    if (std::abs(logit) > 1e4) continue;
                    const double p = 1.0 / static_cast<double>(V), relative = error + 0x1p-8;
                    CHECK(std::abs(out.d_logits[0] - (p - 1)) <= relative);
                    if (V > 1) CHECK(std::abs(out.d_logits[V] - p) <= relative * p);
                }
            }
        }
    }
}

TEST_CASE("logits of 1e4 neither overflow nor hide a wrong answer", "[cross_entropy][device]") {
    const int64_t V = 7;
    for (const Types& types : kinds()) {
        for (const BackendUnderTest& device : backends_under_test(types.d_logits)) {
            INFO(device.name << " " << text(types));
            const double large = reference::rounded(types.logits, {1e4})[0];
            Array logits(3 * V, -large);
            for (int64_t m = 0; m < 3; ++m) logits[m * V + 2] = large;
            const Outputs out = run(*device.backend, logits, {2, 0, 6}, {}, 1, types, V);
            CHECK(inequality(out.losses, {0, 2 * large, 2 * large}) == "");
            Array expected(3 * V, 0.0);
            expected[V + 2] = expected[2 * V + 2] = 1;
            expected[V] = expected[2 * V + 6] = -1;
            CHECK(inequality(out.d_logits, expected) == "");
        }
    }
}

TEST_CASE("minus infinity excludes a token", "[cross_entropy][device]") {
    for (const Types& types : kinds()) {
        for (const BackendUnderTest& device : backends_under_test(types.d_logits)) {
            INFO(device.name << " " << text(types));
            const Outputs out = run(*device.backend, {1, -HUGE_VAL, 1}, {0}, {}, 1, types, 3);
            CHECK(std::abs(out.losses[0] - std::log(2.0)) < 1e-6);
            CHECK(out.d_logits[1] == 0);
            CHECK(std::abs(out.d_logits[2] - 0.5) < 1e-6);
        }
    }
}

TEST_CASE("NaN and infinite logits are visible in loss and gradient of their row",
          "[cross_entropy][device]") {
    const int64_t V = 37;
    for (const Types& types : kinds()) {
        for (const BackendUnderTest& device : backends_under_test(types.d_logits)) {
            for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
                for (int64_t position : {0, 5, 16, 36}) {  // also the first: a running maximum starts there
                    INFO(device.name << " " << text(types) << " " << special << " at " << position);
                    Array logits(3 * V, 0.5);
                    logits[V + position] = special;
                    const Outputs out = run(*device.backend, logits, {1, 7, 2}, {}, 1, types, V);
                    CHECK(std::isfinite(out.losses[0]));
                    CHECK_FALSE(std::isfinite(out.losses[1]));
                    CHECK(std::isfinite(out.losses[2]));
                    CHECK_FALSE(std::isfinite(out.d_logits[V + position]));
                    CHECK(std::isfinite(out.d_logits[position]));
                    CHECK(std::isfinite(out.d_logits[2 * V + position]));
                }
            }
        }
    }
}

TEST_CASE("gradients of a row sum to zero", "[cross_entropy][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Random random(82);
        const int64_t M = 9, V = 501;
        const Outputs out = run(*device.backend, random.normals(M * V, DType::float32, 2),
                                random.tokens(M, V), {}, 1, {DType::float32, DType::float32, false}, V);
        for (int64_t m = 0; m < M; ++m) {
            double sum = 0;
            for (int64_t v = 0; v < V; ++v) sum += out.d_logits[m * V + v];
            CHECK(std::abs(sum) < 2e-6);
        }
    }
}

TEST_CASE("cross_entropy checks its arguments", "[cross_entropy][contract][device]") {
    const int64_t M = 3, V = 5;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            const Tensor losses = bench.output("losses", DType::float32, {M});
            const Tensor d_logits = bench.output("d_logits", type, {M, V});
            const Tensor logits = bench.input("logits", Array(M * V, 1.0), DType::float32, {M, V});
            const Tensor targets = bench.input("targets", {0, 1, 2}, DType::int32, {M});
            const Tensor scale = bench.input("column_scale", Array(V, 1.0), DType::float32, {V});
            // With a bfloat16 gradient logits may be either, with a float32 one not.
            const std::set<int> alone = type == DType::bfloat16 ? std::set<int>{1, 2} : std::set<int>{1};
            CHECK(contract_violations("cross_entropy", {losses, d_logits, logits, targets, scale}, {1, 4},
                                      alone, [&](const std::vector<Tensor>& t) {
                                          device.backend->cross_entropy({.losses = t[0],
                                                                         .d_logits = t[1],
                                                                         .logits = t[2],
                                                                         .targets = t[3],
                                                                         .column_scale = t[4],
                                                                         .gradient_factor = 1});
                                      }) == "");
            // A gradient among logits of another type would overwrite rows that are still to be read.
            if (type == DType::float32) continue;
            CHECK(contract_violation("cross_entropy", [&] {
                      device.backend->cross_entropy({.losses = losses,
                                                     .d_logits = with_dtype(logits, type),
                                                     .logits = logits,
                                                     .targets = targets,
                                                     .gradient_factor = 1});
                  }) == "");
        }
    }
}
