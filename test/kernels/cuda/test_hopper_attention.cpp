// Attention by Hopper's own instructions on the emulated device: right for every sequence length, in every order of threads and
// landings, and refused where it has no kernel. More of it: test_attention.cpp, which runs it beside the other devices.
#include <random>

#include "test/kernels/cuda/attention_fixture.h"
#include "test/support/errors.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Outputs {
    Array y, log_sum_exp, y_remainder;
    bool operator==(const Outputs&) const = default;
};
Outputs forward(Backend& backend, const AttentionShape& s, const Array& qkv) {
    Run run(backend, s, qkv);
    run.forward();
    CHECK(run.bench.damage() == "");
    return {run.bench.read(run.y), run.bench.read(run.log_sum_exp),
            run.y_remainder.empty() ? Array() : run.bench.read(run.y_remainder)};
}
Outputs forward(uint64_t schedule, const AttentionShape& s, const Array& qkv, bool check_races = false) {
    const emulator::SettingsScope scope(hopper_settings(schedule, check_races));
    return forward(hopper(), s, qkv);
}

double largest_difference(const Array& a, const Array& b) {
    double result = 0;
    for (size_t i = 0; i < a.size(); ++i) result = std::max(result, std::abs(a[i] - b[i]));
    return result;
}

}  // namespace

TEST_CASE("Hopper's attention equals the formula and the other kernel at every kind of length",
          "[cuda][hopper][attention_forward]") {
    const uint64_t seed = std::random_device{}();
    Random random(seed);
    for (int64_t T : {1, 63, 64, 65, 127, 128, 129, 300}) {
        // Grouped or not, several sequences, more tiles than the device has multiprocessors.
        const int64_t G = random.integer(1, 2), group = random.integer(1, 2);
        const AttentionShape s{random.integer(2, 3), T, G * group, G, random.pick<int64_t>({64, 64, 128})};
        INFO(text(s) << ", numbers from " << seed);
        const Array qkv = random.normals(s.rows() * s.qkv_columns(), type, 1.25);
        const Expected expected(s, qkv, random.normals(s.rows() * s.heads * s.head_dim, type));
        const Outputs actual = forward(0, s, qkv), other = forward(emulated(), s, qkv);
        CHECK(difference(actual.y, expected.forward.y, type, slack) == "");
        CHECK(difference(actual.log_sum_exp, expected.log_sum_exp(), DType::float32, 0x1p-20) == "");
        CHECK(reference::relative_distance(actual.y, other.y) < 0x1p-7);
        CHECK(largest_difference(actual.log_sum_exp, other.log_sum_exp) < 1e-5);
        CHECK(forward(0, s, qkv) == actual);
        CHECK(forward(random.integer(1, 1000), s, qkv) == actual);
    }
}

TEST_CASE("Hopper's attention gives the same bits in any order of threads and landings, without races",
          "[cuda][hopper][attention_forward]") {
    const uint64_t seed = std::random_device{}();
    Random random(seed);
    for (int64_t D : {64, 128}) {
        // Enough tiles for the ring and the queries' buffers to be used again.
        const AttentionShape s{1, random.integer(513, 640), 3, 1, D};
        INFO(text(s) << ", numbers from " << seed);
        const Array qkv = random.normals(s.rows() * s.qkv_columns(), type);
        const Outputs expected = forward(0, s, qkv);
        for (uint64_t schedule : {1, 2, 3}) {
            INFO("order " << schedule);
            CHECK(forward(schedule, s, qkv, schedule == 1) == expected);
        }
    }
}

TEST_CASE("Hopper's attention moves and multiplies no more than its tiles, without bank conflicts",
          "[cuda][hopper][lint][attention_forward]") {
    for (int64_t D : {64, 128}) {
        const AttentionShape s{2, 256, 4, 2, D};
        const int64_t T = s.sequence, heads = s.batch * s.heads, row = D * size_of(type);
        const emulator::SettingsScope scope(hopper_settings(0));
        Random random(81);
        Run run(hopper(), s, random.normals(s.rows() * s.qkv_columns(), type));
        const emulator::Recorder recorder;
        run.forward();
        INFO(text(s) << "\n" << emulator::markdown(recorder.launches()));
        REQUIRE(recorder.launches().size() == 1);
        const emulator::LaunchReport& launch = recorder.launches()[0];
        // Tiles of 128 queries read their own rows once, and the 128 and 256 keys and values up to the diagonal's end. Weights are
        // summed by products of 8 columns.
        CHECK(launch.tensor_core_flops == 2 * (2 * D + 8) * heads * 128 * (128 + 256));
        CHECK(launch.bytes_loaded == heads * row * (T + 2 * (128 + 256)));
        CHECK(launch.bytes_stored == heads * (2 * row * T + 4 * T));
        CHECK(launch.bank_conflicts() == 0);
        CHECK(launch.shared_bytes <= 227 << 10);
    }
}

TEST_CASE("Hopper's attention is refused where it has no kernel", "[cuda][hopper][attention_forward]") {
    CudaOptions options;
    options.attention = AttentionKernels::hopper;
    CHECK(error_of([&] { make_emulated_cuda_backend(options); }) ==
          "-attention hopper: needs a card of compute capability 9.0, and this is emulated CUDA device, 8.0; "
          "use "
          "auto");

    const emulator::SettingsScope scope(hopper_settings(0));
    const auto refusal = [&](int64_t head_dim, DType dtype) {
        const AttentionShape s{1, 3, 2, 1, head_dim};
        return error_of(
            [&] { Run(hopper(), s, Array(s.rows() * s.qkv_columns(), 0.5), 0, dtype).forward(); });
    };
    CHECK(
        refusal(32, type) ==
        "-attention hopper: has no kernel for head dimension 32, only for 64 and 128: give -attention auto");
    CHECK(refusal(64, DType::float32) ==
          "-attention hopper: has no kernel for float32: give -dtype bf16 or -attention auto");
    CHECK(refusal(64, type) == "");
}
