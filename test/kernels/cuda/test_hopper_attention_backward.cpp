// Attention's backward pass by Hopper's own instructions on the emulated device: right for every sequence length, however many blocks
// share a head, in every order of threads and landings. More of it: test_attention.cpp, which runs it beside the other devices.
#include <random>

#include "test/kernels/cuda/attention_fixture.h"
#include "test/support/errors.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Problem {
    AttentionShape shape;
    Array qkv, dy;
    Problem(const AttentionShape& s, Random& random)
        : shape(s),
          qkv(random.normals(s.rows() * s.qkv_columns(), type, 1.25)),
          dy(random.normals(s.rows() * s.heads * s.head_dim, type)) {}
    Bits on(Backend& backend, const emulator::Settings& settings) const {
        const emulator::SettingsScope scope(settings);
        return bits_of(backend, shape, qkv, dy);
    }
};

// Blocks that share a key/value head, as the workspace tells: two numbers for each query, and D for each block's part.
int64_t splits(const AttentionShape& s) {
    const int64_t tile = s.head_dim == 64 ? 128 : 64, queries = (s.sequence + tile - 1) / tile * tile;
    const int64_t numbers = hopper().attention_backward_workspace(s) / 4 / (s.batch * s.heads * queries);
    return (numbers - 2) / s.head_dim;
}

}  // namespace

TEST_CASE("Hopper's attention backward equals the formula and the other kernels at every kind of length",
          "[cuda][hopper][attention_backward]") {
    const uint64_t seed = std::random_device{}();
    Random random(seed);
    for (int64_t T : {1, 63, 64, 65, 127, 128, 129, 257}) {
        const int64_t G = random.integer(1, 2), group = random.integer(1, 2);
        const AttentionShape s{random.integer(1, 2), T, G * group, G, random.pick<int64_t>({64, 128})};
        INFO(text(s) << ", numbers from " << seed);
        const Problem problem(s, random);
        const Expected expected(s, problem.qkv, problem.dy);
        const Bits actual = problem.on(hopper(), hopper_settings(0));
        CHECK(difference(actual.dqkv, expected.dqkv, type, slack) == "");
        CHECK(reference::relative_distance(actual.dqkv,
                                           bits_of(emulated(), s, problem.qkv, problem.dy).dqkv) < 0x1p-7);
        CHECK(problem.on(hopper(), hopper_settings(random.integer(1, 1000))) == actual);
    }
}

TEST_CASE(
    "Hopper's attention backward sums the gradients of queries in one order, however many blocks share a "
    "head",
    "[cuda][hopper][attention_backward]") {
    const uint64_t seed = std::random_device{}();
    Random random(seed);
    struct Case {
        AttentionShape shape;
        int64_t splits;
    };
    // The emulated device has eight multiprocessors. Rings, buffers and slices are used again and again.
    for (const Case& c :
         {Case{{1, random.integer(257, 383), 8, 8, 64}, 1}, Case{{2, random.integer(129, 255), 8, 4, 128}, 1},
          Case{{1, random.integer(513, 639), 2, 2, 64}, 3},
          Case{{1, random.integer(257, 383), 2, 1, 128}, 2}}) {
        INFO(text(c.shape) << ", numbers from " << seed);
        REQUIRE(splits(c.shape) == c.splits);
        const Problem problem(c.shape, random);
        const Bits actual = problem.on(hopper(), hopper_settings(0));
        CHECK(difference(actual.dqkv, Expected(c.shape, problem.qkv, problem.dy).dqkv, type, slack) == "");
        CHECK(problem.on(hopper(), hopper_settings(1, true)) == actual);
        CHECK(problem.on(hopper(), hopper_settings(random.integer(2, 1000))) == actual);
    }
}

TEST_CASE("Hopper's attention keeps of its outputs what rounding takes from nearly even values",
          "[cuda][hopper][attention_forward]") {
    // A column's values are two neighbouring numbers: the outputs lie between them, and the rounding of weights must not move
    // outputs by more than a part of their distance.
    for (int64_t D : {64, 128}) {
        const AttentionShape s{1, 150, 2, 1, D};
        const int64_t columns = s.qkv_columns();
        const double step = 0x1p-7;  // from 1 to 2
        Random random(83);
        Array qkv = random.normals(s.rows() * columns, type, 2), base;
        for (int64_t i = 0; i < D; ++i)
            base.push_back(1 + step * static_cast<double>(random.integer(0, 126)));
        for (int64_t t = 0; t < s.sequence; ++t)
            for (int64_t i = 0; i < D; ++i)
                qkv[t * columns + 3 * D + i] = base[i] + step * static_cast<double>(random.integer(0, 1));
        const Array exact = reference::attention_forward(qkv, plain(s)).y.value;
        const emulator::SettingsScope scope(hopper_settings(0));
        Run run(hopper(), s, qkv);
        run.forward();
        const Array y = run.bench.read(run.y), remainder = run.bench.read(run.y_remainder);
        double with = 0, without = 0;
        for (int64_t i = 0; i < std::ssize(y); ++i) {
            with = std::max(with, std::abs(y[i] + remainder[i] - exact[i]));
            without = std::max(without, std::abs(y[i] - exact[i]));
        }
        INFO(text(s));
        CHECK(with < step / 128);
        CHECK(without > step / 4);
        CHECK(run.bench.damage() == "");
    }
}

TEST_CASE(
    "Hopper's attention backward multiplies five times and moves no more than its tiles, without bank "
    "conflicts",
    "[cuda][hopper][lint][attention_backward]") {
    for (int64_t D : {64, 128}) {
        const AttentionShape s{2, 256, 4, 2, D};
        const int64_t T = s.sequence, heads = s.batch * s.heads, kv_heads = s.batch * s.kv_heads;
        const int64_t row = D * size_of(type);
        const emulator::SettingsScope scope(hopper_settings(0));
        Random random(82);
        Run run(hopper(), s, random.normals(s.rows() * s.qkv_columns(), type));
        run.forward();
        const emulator::Recorder recorder;
        run.backward(random.normals(s.rows() * s.heads * D, type));
        INFO(text(s) << "\n" << emulator::markdown(recorder.launches()));
        REQUIRE(recorder.launches().size() == 3);
        REQUIRE(splits(s) == 2);
        const emulator::LaunchReport& statistics = recorder.launches()[0];
        const emulator::LaunchReport& products = recorder.launches()[1];
        const emulator::LaunchReport& sums = recorder.launches()[2];
        for (const emulator::LaunchReport& launch : recorder.launches()) {
            CHECK(launch.bank_conflicts() == 0);
            CHECK(launch.load_sectors == launch.ideal_load_sectors);
            CHECK(launch.store_sectors == launch.ideal_store_sectors);
            CHECK(launch.shared_bytes <= 227 << 10);
        }
        CHECK(statistics.bytes_loaded == heads * T * (3 * row + 4));
        CHECK(statistics.bytes_stored == heads * T * 2 * 4);
        // Tiles of 128 keys see 256 and 128 queries, each of which brings two rows and two numbers and takes dq away; its sum is
        // of one part and of two.
        CHECK(products.tensor_core_flops == 5 * 2 * D * heads * 128 * (256 + 128));
        CHECK(products.bytes_loaded == kv_heads * 2 * row * T + heads * (256 + 128) * (2 * row + 2 * 4));
        CHECK(products.bytes_stored == kv_heads * 2 * row * T + heads * (256 + 128) * D * 4);
        CHECK(sums.bytes_loaded == heads * (128 + 2 * 128) * D * 4);
        CHECK(sums.bytes_stored == heads * T * row);
    }
}

TEST_CASE("Hopper's attention backward is refused without what rounding took, and where it has no kernel",
          "[cuda][hopper][attention_backward]") {
    const emulator::SettingsScope scope(hopper_settings(0));
    const AttentionShape s{1, 3, 2, 1, 64};
    const Array qkv(s.rows() * s.qkv_columns(), 0.5), dy(s.rows() * s.heads * s.head_dim, 1.0);
    Run without(hopper(), s, qkv);
    const Tensor remainder = std::exchange(without.y_remainder, Tensor());
    without.forward();
    CHECK(error_of<std::logic_error>([&] { without.backward(dy); }) ==
          "attention_backward: this backend needs y_remainder");
    Run unwanted(emulated(), s, qkv);
    unwanted.y_remainder = remainder;
    CHECK(error_of<std::logic_error>([&] { unwanted.forward(); }) ==
          "attention_forward: this backend takes no y_remainder");
    CHECK(
        error_of<std::runtime_error>([&] {
            hopper().attention_backward_workspace({1, 3, 2, 1, 32});
        }) ==
        "-attention hopper: has no kernel for head dimension 32, only for 64 and 128: give -attention auto");
}
