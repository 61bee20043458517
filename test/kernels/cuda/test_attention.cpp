// What only the CUDA kernels of attention can get wrong: tiles of the tensor-core kernels and the edges
// between them, the choice of kernels, and what the kernels ask of the memory system.
#include <limits>

#include "test/kernels/cuda/attention_fixture.h"

using namespace train_qat;
using namespace train_qat::test;

TEST_CASE("attention over several tiles equals the double-precision formula",
          "[cuda][attention_forward][attention_backward][device]") {
    // Sequences that end in the first and in the last row of a warp's tile, one row before and behind a
    // block's.
    std::vector<AttentionShape> shapes = {
        {1, 300, 4, 2, 64},  {1, 300, 2, 1, 128}, {2, 129, 3, 1, 64}, {2, 129, 2, 2, 128}, {1, 255, 2, 1, 64},
        {1, 161, 1, 1, 128}, {1, 385, 1, 1, 64},  {1, 48, 6, 1, 128}, {3, 16, 2, 1, 64},   {1, 300, 4, 2, 32},
        {2, 129, 3, 1, 32},  {1, 255, 2, 1, 96},  {2, 129, 4, 2, 96}, {1, 127, 2, 2, 96},  {1, 129, 2, 1, 16},
        {2, 1, 2, 1, 16},    {3, 1, 2, 2, 32},    {2, 1, 6, 2, 96}};
    Random drawn(80);
    for (int64_t D : tensor_core_head_dims) {
        const int64_t kv_heads = drawn.integer(1, 2);
        shapes.push_back({1, 2 * drawn.integer(1, 60) + 1, kv_heads * drawn.integer(1, 3), kv_heads, D});
    }
    for (const AttentionShape& s :
         affordable(shapes, 140, [](const AttentionShape& shape) { return shape.sequence; })) {
        Random random(71);
        const Array qkv = random.normals(s.rows() * s.qkv_columns(), type, 1.25);
        const Array dy = random.normals(s.rows() * s.heads * s.head_dim, type);
        const Expected expected(s, qkv, dy);
        for (const CudaDevice& device : cuda_devices(s.head_dim)) {
            const emulator::SettingsScope scope(device.settings());
            INFO(device.name << ", " << text(s));
            Run run(*device.backend, s, qkv);
            check_forward(run, expected);
            check_backward(run, dy, expected);
        }
    }
}

TEST_CASE("addresses that tensor-core kernels cannot take, and large heads",
          "[cuda][attention_forward][attention_backward][device]") {
    struct Case {
        AttentionShape shape;
        int64_t offset;
        DType dtype;
    };
    // Heads of 512 leave room for few warps in a block: tiles of keys and of queries differ in size.
    for (Case c : {Case{{1, 70, 2, 1, 64}, 1, type}, Case{{1, 45, 2, 2, 128}, 4, type},
                   Case{{1, 45, 2, 1, 32}, 2, type}, Case{{1, 33, 2, 1, 96}, 7, type},
                   Case{{2, 45, 2, 1, 512}, 0, type}, Case{{1, 45, 3, 1, 512}, 0, DType::float32},
                   Case{{1, 70, 1, 1, 256}, 0, DType::float32}}) {
        // The same tiles in fewer blocks.
        if (small_shapes_only()) c.shape.batch = c.shape.heads = c.shape.kv_heads = 1;
        Random random(72);
        const AttentionShape& s = c.shape;
        const Array qkv = random.normals(s.rows() * s.qkv_columns(), c.dtype);
        const Array dy = random.normals(s.rows() * s.heads * s.head_dim, c.dtype);
        const Expected expected(s, qkv, dy);
        const Array& magnitude = expected.forward.log_sum_exp_magnitude;
        const double allowed =
            c.dtype == type ? slack
                            : 0x1p-21 + 0x1p-22 * *std::max_element(magnitude.begin(), magnitude.end());
        for (const CudaDevice& device : cuda_devices(0)) {
            const emulator::SettingsScope scope(device.settings());
            INFO(device.name << ", " << text(s) << ", offset " << c.offset);
            Run run(*device.backend, s, qkv, c.offset, c.dtype);
            check_forward(run, expected, allowed);
            check_backward(run, dy, expected, allowed);
        }
    }
}

TEST_CASE("attention's running maximum may rise at every key, fall, or start at -infinity",
          "[cuda][attention_forward][device]") {
    // With q = (8, 0, ...) and k[u] = (x, 0, ...) a score is 8 x / sqrt(D).
    for (int64_t D : tensor_core_head_dims) {
        const AttentionShape s{1, 150, 1, 1, D};
        for (const std::string kind : {"rising", "falling", "waves", "hidden start"}) {
            Random random(73);
            Array qkv = random.normals(s.rows() * 3 * D, type);
            for (int64_t t = 0; t < s.sequence; ++t) {
                std::fill_n(qkv.begin() + t * 3 * D, 2 * D, 0.0);
                const auto position = static_cast<double>(t);
                double key = 2 * position;
                if (kind == "falling") key = -key;
                if (kind == "waves") key = 16 * std::sin(position / 5);
                if (kind == "hidden start") key = t < 70 ? -HUGE_VAL : 0.0;
                qkv[t * 3 * D] = 8;
                qkv[t * 3 * D + D] = reference::round_to(type, key);
            }
            // Where all keys so far are at -infinity there is no answer; the oracle gets the rest.
            const int64_t skipped = kind == "hidden start" ? 70 : 0;
            const Array rest(qkv.begin() + skipped * 3 * D, qkv.end());
            const AttentionShape rest_shape{1, s.sequence - skipped, 1, 1, D};
            const reference::AttentionForward expected =
                reference::attention_forward(rest, plain(rest_shape));
            for (const CudaDevice& device : cuda_devices(s.head_dim)) {
                const emulator::SettingsScope scope(device.settings());
                INFO(device.name << ", " << kind << ", " << text(s));
                Run run(*device.backend, s, qkv);
                run.forward();
                const Array y = run.bench.read(run.y), log_sum_exp = run.bench.read(run.log_sum_exp);
                CHECK(not_finite(y, 0, skipped * D) == skipped * D);
                CHECK(difference(Array(y.begin() + skipped * D, y.end()), expected.y, type, slack) == "");
                reference::Result bound;
                bound.value = expected.log_sum_exp;
                bound.magnitude = expected.log_sum_exp_magnitude;
                CHECK(difference(Array(log_sum_exp.begin() + skipped, log_sum_exp.end()), bound,
                                 DType::float32, 0x1p-20) == "");
            }
        }
    }
}

TEST_CASE("nearly even attention keeps the gradients of queries and keys",
          "[cuda][attention_backward][device]") {
    // All values are near 64, and so is y: its rounding is as large as what makes one value differ from
    // another.
    for (int64_t D : {16, 32, 64, 96, 128, 40}) {
        const AttentionShape s{1, 150, 2, 1, D};
        const int64_t columns = s.qkv_columns(), turned = 3 * D;
        Random random(79);
        Array qkv = random.normals(s.rows() * columns, type, 0.02);
        for (int64_t i = 0; i < std::ssize(qkv); ++i)
            if (i % columns >= turned) qkv[i] = reference::round_to(type, 64 + random.normal());
        const Array dy = random.normals(s.rows() * s.heads * D, type);
        const Expected expected(s, qkv, dy);
        for (const CudaDevice& device : cuda_devices(s.head_dim)) {
            const emulator::SettingsScope scope(device.settings());
            INFO(device.name << ", " << text(s));
            Run run(*device.backend, s, qkv);
            run.forward();
            run.backward(dy);
            const Array actual = run.bench.read(run.dqkv);
            Array of_scores, expected_of_scores;
            for (int64_t i = 0; i < std::ssize(actual); ++i)
                if (i % columns < turned) {
                    of_scores.push_back(actual[i]);
                    expected_of_scores.push_back(expected.dqkv.value[i]);
                }
            CHECK(reference::relative_distance(of_scores, expected_of_scores) < 0.01);
        }
    }
}

TEST_CASE("tensor-core attention is causal to the bit",
          "[cuda][attention_forward][attention_backward][device]") {
    for (int64_t D : tensor_core_head_dims) {
        const AttentionShape s{2, 140, 2, 1, D};
        const int64_t columns = s.qkv_columns(), width = s.heads * D;
        Random random(74);
        const Array qkv = random.normals(s.rows() * columns, type);
        Array dy = random.normals(s.rows() * width, type);
        // Gradients only before position 75 of sequence 0; from there on also other, much larger rows.
        std::fill(dy.begin() + 75 * width, dy.begin() + 140 * width, 0.0);
        Array changed = qkv;
        for (int64_t i = 75 * columns; i < 140 * columns; ++i)
            changed[i] = reference::round_to(type, 100 * random.normal());
        for (const CudaDevice& device : cuda_devices(s.head_dim)) {
            const emulator::SettingsScope scope(device.settings());
            INFO(device.name << ", " << text(s));
            const Bits before = bits_of(*device.backend, s, qkv, dy);
            const Bits after = bits_of(*device.backend, s, changed, dy);
            const auto same = [](const Array& a, const Array& b, int64_t first, int64_t last) {
                return std::equal(a.begin() + first, a.begin() + last, b.begin() + first);
            };
            CHECK(same(before.y, after.y, 0, 75 * width));
            CHECK(same(before.y, after.y, 140 * width, 280 * width));
            for (int64_t head = 0; head < 4; ++head)
                CHECK(same(before.log_sum_exp, after.log_sum_exp, head * 140,
                           head * 140 + (head < 2 ? 75 : 140)));
            CHECK(same(before.dqkv, after.dqkv, 0, 75 * columns));
            CHECK(same(before.dqkv, after.dqkv, 140 * columns, 280 * columns));
            CHECK(std::count(after.dqkv.begin() + 75 * columns, after.dqkv.begin() + 140 * columns, 0.0) ==
                  65 * columns);
        }
    }
}

TEST_CASE("tensor-core attention shows what is not a number, in its own sequence only",
          "[cuda][attention_forward][attention_backward][device]") {
    for (int64_t D : tensor_core_head_dims) {
        const AttentionShape s{3, 40, 2, 1, D};
        const int64_t columns = s.qkv_columns(), width = s.heads * D;
        for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL})
            for (const std::string where : {"query", "key", "value", "gradient"}) {
                Random random(75);
                Array qkv = random.normals(s.rows() * columns, type),
                      dy = random.normals(s.rows() * width, type);
                const int64_t column = 3 + (where == "key" ? 2 * D : where == "value" ? 3 * D : 0);
                if (where == "gradient")
                    dy[60 * width + column] = special;
                else
                    qkv[60 * columns + column] = special;
                for (const CudaDevice& device : cuda_devices(s.head_dim)) {
                    const emulator::SettingsScope scope(device.settings());
                    INFO(device.name << ", " << text(s) << ", " << special << " in a " << where);
                    const Bits bits = bits_of(*device.backend, s, qkv, dy);
                    CHECK(not_finite(bits.y, 0, 40 * width) == 0);
                    CHECK((not_finite(bits.y, 60 * width, 80 * width) > 0) == (where != "gradient"));
                    CHECK(not_finite(bits.y, 80 * width, 120 * width) == 0);
                    CHECK(not_finite(bits.dqkv, 0, 40 * columns) == 0);
                    CHECK(not_finite(bits.dqkv, 40 * columns, 80 * columns) > 0);
                    CHECK(not_finite(bits.dqkv, 80 * columns, 120 * columns) == 0);
                }
            }
    }
}

TEST_CASE("attention gives the same bits in any order of its threads, without races",
          "[cuda][attention_forward][attention_backward]") {
    for (int64_t D : {16, 32, 64, 96, 128, 10}) {
        const AttentionShape s{1, 140, 2, 1, D};
        Random random(76);
        const Array qkv = random.normals(s.rows() * s.qkv_columns(), type);
        const Array dy = random.normals(s.rows() * s.heads * D, type);
        const Bits expected = bits_of(emulated(), s, qkv, dy);
        for (uint64_t seed : {1, 2}) {
            INFO(text(s) << ", order " << seed);
            emulator::Settings settings = emulator::settings();
            settings.schedule_seed = seed;
            settings.check_races = true;
            const emulator::SettingsScope scope(settings);
            CHECK(bits_of(emulated(), s, qkv, dy) == expected);
        }
    }
}

namespace {

// Softmax weights that a kernel computes for one head when warps of `rows` rows go over strips of `columns`,
// those that the mask hides altogether left out. T is a multiple of both.
int64_t computed_weights(int64_t T, int64_t rows, int64_t columns, bool rows_are_keys) {
    int64_t count = 0;
    for (int64_t row = 0; row < T; row += rows)
        for (int64_t column = 0; column < T; column += columns)
            if (rows_are_keys ? column + columns > row : column < row + rows) count += rows * columns;
    return count;
}

void check_memory_system(const emulator::LaunchReport& launch) {
    CHECK(launch.bank_conflicts() == 0);
    CHECK(launch.load_sectors == launch.ideal_load_sectors);
    CHECK(launch.store_sectors == launch.ideal_store_sectors);
    CHECK(launch.shared_bytes <= 99 << 10);  // what every device has
}

}  // namespace

TEST_CASE("attention kernels compute no more than their tiles, without bank conflicts",
          "[cuda][lint][attention_forward][attention_backward]") {
    for (int64_t D : tensor_core_head_dims) {
        const AttentionShape s{2, 256, 4, 2, D};
        const int64_t T = s.sequence, heads = s.batch * s.heads, row = D * size_of(type);
        Random random(77);
        Run run(emulated(), s, random.normals(s.rows() * s.qkv_columns(), type));
        const emulator::Recorder recorder;
        run.forward();
        run.backward(random.normals(s.rows() * s.heads * D, type));
        INFO(text(s) << "\n" << emulator::markdown(recorder.launches()));
        REQUIRE(recorder.launches().size() == 3);
        const emulator::LaunchReport& forward = recorder.launches()[0];
        const emulator::LaunchReport& queries = recorder.launches()[1];
        const emulator::LaunchReport& keys = recorder.launches()[2];
        for (const emulator::LaunchReport& launch : recorder.launches()) check_memory_system(launch);

        // A product of T x T x D is 2 D FLOP a weight: two of them forward; two and three; four.
        const bool wide = D > 64;
        const int64_t warp = wide ? 16 : 32;  // rows of a warp in the backward pass
        CHECK(forward.tensor_core_flops ==
              2 * 2 * D * heads * computed_weights(T, 32, wide ? 32 : 64, false));
        CHECK(queries.tensor_core_flops ==
              5 * 2 * D * heads * computed_weights(T, warp, wide ? 32 : 16, false));
        CHECK(keys.tensor_core_flops == 4 * 2 * D * heads * computed_weights(T, warp, 32, true));

        // Blocks of 128 rows read their own rows once and those of the other side up to, or from, the
        // diagonal.
        const int64_t other_rows = 128 + 256;
        CHECK(forward.bytes_loaded == heads * row * (T + 2 * other_rows));
        CHECK(forward.bytes_stored == heads * (row * T + 4 * T));
        CHECK(queries.bytes_loaded == heads * (row * (2 * T + 2 * 2 * other_rows) + 4 * 4 * T));
        CHECK(queries.bytes_stored == heads * (row * T + 2 * 4 * T));
        CHECK(keys.bytes_loaded ==
              heads * (2 * row + 2 * 4) * other_rows + s.batch * s.kv_heads * 2 * row * T);
        CHECK(keys.bytes_stored == s.batch * s.kv_heads * 2 * row * T);
    }
}

TEST_CASE("attention kernels for any head dimension have no bank conflicts",
          "[cuda][lint][attention_forward][attention_backward]") {
    for (DType dtype : {DType::float32, DType::bfloat16}) {
        const AttentionShape s{1, 96, 2, 1, 160};
        Random random(78);
        Run run(emulated(), s, random.normals(s.rows() * s.qkv_columns(), dtype), 0, dtype);
        const emulator::Recorder recorder;
        run.forward();
        run.backward(random.normals(s.rows() * s.heads * s.head_dim, dtype));
        INFO(name_of(dtype) << "\n" << emulator::markdown(recorder.launches()));
        REQUIRE(recorder.launches().size() == 3);
        for (const emulator::LaunchReport& launch : recorder.launches()) check_memory_system(launch);
    }
}
