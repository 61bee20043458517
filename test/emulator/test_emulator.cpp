// The CUDA emulator computes what a GPU would: correct kernels, in all kinds of schedules and settings.
#include <algorithm>
#include <cmath>
#include <random>

#include "test/emulator/emulator_fixture.h"

using namespace train_qat;
using train_qat::test::DeviceArray;

namespace train_qat::CU_BACKEND {
namespace {

// ---- kernels

// out[b] = sum of row b of in (B, n)
__global__ void __launch_bounds__(128) row_sums(float* out, const float* in, int n) {
    CU_SHARED(scratch, float[4]);
    float sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += 128)
        sum += load(in + static_cast<int64_t>(blockIdx.x) * n + i);
    sum = block_sum<128>(sum, scratch);
    if (threadIdx.x == 0) store(out + blockIdx.x, sum);
}

// out (columns, rows) = in (rows, columns) transposed, in tiles of 32 x 32 by 32 x 8 threads
template <typename T>
__global__ void transpose(T* out, const T* in, int rows, int columns) {
    CU_SHARED(tile, T[32][33]);
    const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
    const int row = static_cast<int>(blockIdx.y) * 32, column = static_cast<int>(blockIdx.x) * 32;
    for (int i = y; i < 32; i += 8)
        if (row + i < rows && column + x < columns)
            store_shared(&tile[i][x], load(in + static_cast<int64_t>(row + i) * columns + column + x));
    block_sync();
    for (int i = y; i < 32; i += 8)
        if (column + i < columns && row + x < rows)
            store(out + static_cast<int64_t>(column + i) * rows + row + x, load_shared(&tile[x][i]));
}

constexpr int pitch = 24, wide_pitch = 72;  // rows of 16 and of 64 elements without bank conflicts

// c (64, 64) = a (64, K) b, b (64, K) transposed or b (K, 64); K a multiple of 16, loaded one step ahead
template <bool b_by_columns>
__global__ void __launch_bounds__(128) multiply(float* c, const bfloat16* a, const bfloat16* b, int K) {
    CU_DYN_SHARED(bfloat16, tiles);
    constexpr int a_elements = 64 * pitch, b_elements = b_by_columns ? 16 * wide_pitch : 64 * pitch;
    constexpr int stage_elements = a_elements + b_elements;
    const int lane = lane_index(), warp = warp_index(), thread = static_cast<int>(threadIdx.x);
    const auto start_loading = [&](int k) {
        bfloat16* stage = tiles + k / 16 % 2 * stage_elements;
        const int row = thread / 2, half = thread % 2 * 8;
        cp_async_16(stage + row * pitch + half, a + row * K + k + half);
        if constexpr (b_by_columns)
            cp_async_16(stage + a_elements + thread / 8 * wide_pitch + thread % 8 * 8,
                        b + (k + thread / 8) * 64 + thread % 8 * 8);
        else
            cp_async_16(stage + a_elements + row * pitch + half, b + row * K + k + half);
    };
    float sum[1][8][4] = {};
    start_loading(0);
    cp_async_commit();
    for (int k = 0; k < K; k += 16) {
        if (k + 16 < K) start_loading(k + 16);
        cp_async_commit();
        cp_async_wait<1>();
        block_sync();
        const bfloat16* stage = tiles + k / 16 % 2 * stage_elements;
        uint32_t a_part[1][4], b_part[8][2];
        ldmatrix_x4(a_part[0], stage + (warp * 16 + lane % 16) * pitch + lane / 16 * 8);
        for (int j = 0; j < 8; j += 2) {
            uint32_t four[4];
            const bfloat16* b_tile = stage + a_elements;
            if constexpr (b_by_columns)
                ldmatrix_x4_trans(four, b_tile + lane % 16 * wide_pitch + 8 * j + lane / 16 * 8);
            else
                ldmatrix_x4(four, b_tile + (8 * j + lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
            b_part[j][0] = four[0];
            b_part[j][1] = four[1];
            b_part[j + 1][0] = four[2];
            b_part[j + 1][1] = four[3];
        }
        mma_tile<16, 64>(sum, a_part, b_part);
        block_sync();
    }
    for (int j = 0; j < 8; ++j)
        for (int p = 0; p < 4; ++p)
            store(c + (warp * 16 + lane / 4 + p / 2 * 8) * 64 + 8 * j + lane % 4 * 2 + p % 2, sum[0][j][p]);
}

// sum (M, N) of each lane += the product of fragments that are stored one lane after the other
template <int M, int N>
__global__ void fragments(float* sums, const uint32_t* a_parts, const uint32_t* b_parts) {
    uint32_t a[M / 16][4], b[N / 8][2];
    float sum[M / 16][N / 8][4];
    const int lane = lane_index();
    for (int i = 0; i < M / 4; ++i) a[i / 4][i % 4] = load(a_parts + lane * (M / 4) + i);
    for (int j = 0; j < N / 4; ++j) b[j / 2][j % 2] = load(b_parts + lane * (N / 4) + j);
    float* mine = sums + lane * (M * N / 32);
    for (int i = 0; i < M * N / 32; ++i) sum[i / 4 / (N / 8)][i / 4 % (N / 8)][i % 4] = load(mine + i);
    mma_tile<M, N>(sum, a, b);
    for (int i = 0; i < M * N / 32; ++i) store(mine + i, sum[i / 4 / (N / 8)][i / 4 % (N / 8)][i % 4]);
}

struct WarpResults {
    int64_t xor_5, from_7, from_lane;
    double sum;
    uint32_t votes;
    float maximum;
};

__global__ void warp_functions(WarpResults* results) {
    const int lane = lane_index();
    const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    WarpResults r{};
    r.xor_5 = shuffle_xor(static_cast<int64_t>(thread) << 33, 5);
    r.from_7 = shuffle(thread, 7);
    r.from_lane = shuffle(thread, 31 - lane);
    r.sum = warp_sum(static_cast<double>(lane));
    r.votes = ballot(lane % 3 == 0);
    r.maximum = warp_max(lane == 13 ? 1.0f : -1.0f);
    store(&results[thread], r);
}

// Lanes hand each other numbers through shared memory, ordered by warp_sync alone.
__global__ void warp_rotation(int* out, int rounds) {
    CU_SHARED(numbers, int[4][32]);
    int* mine = numbers[warp_index()];
    const int lane = lane_index();
    int value = lane;
    for (int i = 0; i < rounds; ++i) {
        store_shared(mine + lane, value);
        warp_sync();
        value = load_shared(mine + (lane + 1) % 32);
        warp_sync();
    }
    store(out + blockIdx.x * blockDim.x + threadIdx.x, value);
}

__global__ void add_one(int* values, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) store(values + i, load(values + i) + 1);
}

// Some threads return before others meet.
__global__ void early_return(int* out, int working) {
    CU_SHARED(first, int);
    if (static_cast<int>(threadIdx.x) >= working) return;
    if (threadIdx.x == 0) store_shared(&first, 7);
    block_sync();
    store(out + threadIdx.x, load_shared(&first));
}

__global__ void partial_copy(float* out, const float* in, int valid) {
    CU_SHARED(four, Vector<float, 4>);
    if (threadIdx.x == 0) {
        cp_async_16(&four, in, 4 * valid);
        cp_async_commit();
        cp_async_wait<0>();
    }
    block_sync();
    if (threadIdx.x < 4) store(out + threadIdx.x, load_shared(&four.element[threadIdx.x]));
}

// Neighbouring threads write halves of the same word.
__global__ void halves(bfloat16* out) {
    CU_SHARED(row, bfloat16[64]);
    store_shared(&row[threadIdx.x], bfloat16(static_cast<float>(threadIdx.x)));
    block_sync();
    store(out + threadIdx.x, load_shared(&row[63 - threadIdx.x]));
}

}  // namespace
}  // namespace train_qat::CU_BACKEND

using namespace train_qat::CU_BACKEND;

namespace {

std::vector<float> random_floats(size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(random() % 20001) / 10000.0f - 1.0f;
    return values;
}

std::vector<bfloat16> random_bfloat16(size_t count, unsigned seed) {
    const std::vector<float> values = random_floats(count, seed);
    return std::vector<bfloat16>(values.begin(), values.end());
}

// Everything that must not change a correct kernel's result.
std::vector<emulator::Settings> all_settings() {
    std::vector<emulator::Settings> all;
    emulator::Settings plain, racing;
    plain.checked = false;
    racing.check_races = true;
    all = {plain, emulator::Settings(), racing};
    for (uint64_t seed : {1, 2, 3}) {
        emulator::Settings seeded = racing;
        seeded.schedule_seed = seed;
        all.push_back(seeded);
        seeded.check_races = false;
        seeded.threads = 2;
        all.push_back(seeded);
    }
    return all;
}

template <typename Test>
void with_all_settings(const Test& test) {
    for (const emulator::Settings& settings : all_settings()) {
        INFO("checked " << settings.checked << ", races " << settings.check_races << ", seed "
                        << settings.schedule_seed);
        const emulator::SettingsScope scope(settings);
        test();
    }
}

}  // namespace

TEST_CASE("Emulated reduction through shared memory", "[emulator]") {
    Runtime runtime(0);
    constexpr int rows = 37, n = 301;
    const std::vector<float> values = random_floats(rows * n, 1);
    const DeviceArray<float> in(runtime, values), out(runtime, rows);
    std::vector<float> first;
    with_all_settings([&] {
        CU_LAUNCH(row_sums, rows, 128, 0, runtime.stream(), out.data(), in.data(), n);
        const std::vector<float> sums = out.read();
        if (first.empty()) first = sums;
        CHECK(sums == first);  // independent of the schedule
        for (int row = 0; row < rows; ++row) {
            double expected = 0;
            for (int i = 0; i < n; ++i) expected += values[static_cast<size_t>(row * n + i)];
            CHECK(sums[static_cast<size_t>(row)] == Approx(expected).margin(1e-4));
        }
    });
}

TEST_CASE("Emulated transpose of two-dimensional blocks", "[emulator]") {
    Runtime runtime(0);
    constexpr int rows = 45, columns = 70;
    const std::vector<float> values = random_floats(rows * columns, 2);
    const std::vector<bfloat16> halves(values.begin(), values.end());
    const DeviceArray<float> in(runtime, values), out(runtime, rows * columns);
    const DeviceArray<bfloat16> in_half(runtime, halves), out_half(runtime, rows * columns);
    with_all_settings([&] {
        const dim3 grid(3, 2), block(32, 8);
        CU_LAUNCH((transpose<float>), grid, block, 0, runtime.stream(), out.data(), in.data(), rows, columns);
        CU_LAUNCH((transpose<bfloat16>), grid, block, 0, runtime.stream(), out_half.data(), in_half.data(),
                  rows, columns);
        const std::vector<float> result = out.read();
        const std::vector<bfloat16> result_half = out_half.read();
        bool equal = true;
        for (size_t i = 0; i < rows; ++i)
            for (size_t j = 0; j < columns; ++j)
                equal = equal && result[j * rows + i] == values[i * columns + j] &&
                        result_half[j * rows + i].bits == halves[i * columns + j].bits;
        CHECK(equal);
    });
}

TEST_CASE("Emulated tensor-core matmul with ldmatrix and cp.async", "[emulator]") {
    Runtime runtime(0);
    constexpr size_t K = 80;
    const std::vector<bfloat16> a_values = random_bfloat16(64 * K, 3), b_values = random_bfloat16(64 * K, 4);
    const DeviceArray<bfloat16> a(runtime, a_values), b(runtime, b_values);
    const DeviceArray<float> c(runtime, 64 * 64);
    constexpr int shared_bytes = 2 * 2 * 64 * pitch * 2;
    with_all_settings([&] {
        for (bool b_by_columns : {false, true}) {
            if (b_by_columns)
                CU_LAUNCH((multiply<true>), 1, 128, shared_bytes, runtime.stream(), c.data(), a.data(),
                          b.data(), static_cast<int>(K));
            else
                CU_LAUNCH((multiply<false>), 1, 128, shared_bytes, runtime.stream(), c.data(), a.data(),
                          b.data(), static_cast<int>(K));
            const std::vector<float> result = c.read();
            double worst = 0;
            for (size_t i = 0; i < 64; ++i)
                for (size_t j = 0; j < 64; ++j) {
                    double sum = 0;
                    for (size_t k = 0; k < K; ++k)
                        sum += static_cast<double>(a_values[i * K + k]) *
                               b_values[b_by_columns ? k * 64 + j : j * K + k];
                    worst = std::max(worst, std::abs(result[i * 64 + j] - sum));
                }
            CHECK(worst < 2e-5);
        }
    });
}

// The fragments' layout as kernels/cuda/platform/portable.cuh states it.
template <int M, int N>
static void check_fragments(Runtime& runtime, unsigned seed) {
    std::mt19937 random(seed);
    const auto part = [&] {
        return pack_bfloat16(static_cast<float>(random() % 512) / 256.0f - 1.0f,
                             static_cast<float>(random() % 512) / 256.0f - 1.0f);
    };
    std::vector<uint32_t> a_parts(32 * M / 4), b_parts(32 * N / 4);
    for (uint32_t& word : a_parts) word = part();
    for (uint32_t& word : b_parts) word = part();
    const std::vector<float> start = random_floats(M * N, seed + 1);
    const DeviceArray<uint32_t> a(runtime, a_parts), b(runtime, b_parts);
    const DeviceArray<float> sums(runtime, start);
    CU_LAUNCH((fragments<M, N>), 1, 32, 0, runtime.stream(), sums.data(), a.data(), b.data());
    const std::vector<float> result = sums.read();

    double a_matrix[M][16], b_matrix[16][N], worst = 0;
    for (size_t lane = 0; lane < 32; ++lane) {
        const size_t g = lane / 4, t = lane % 4;
        for (size_t i = 0; i < M / 4; ++i) {
            const uint32_t word = a_parts[lane * (M / 4) + i];
            const size_t row = i / 4 * 16 + g + i % 2 * 8, column = 2 * t + i % 4 / 2 * 8;
            a_matrix[row][column] = low_bfloat16(word);
            a_matrix[row][column + 1] = high_bfloat16(word);
        }
        for (size_t j = 0; j < N / 4; ++j) {
            const uint32_t word = b_parts[lane * (N / 4) + j];
            const size_t row = 2 * t + j % 2 * 8, column = j / 2 * 8 + g;
            b_matrix[row][column] = low_bfloat16(word);
            b_matrix[row + 1][column] = high_bfloat16(word);
        }
    }
    for (size_t lane = 0; lane < 32; ++lane)
        for (size_t p = 0; p < M * N / 32; ++p) {
            const size_t row = p / 4 / (N / 8) * 16 + lane / 4 + p % 4 / 2 * 8;
            const size_t column = p / 4 % (N / 8) * 8 + lane % 4 * 2 + p % 2, at = lane * (M * N / 32) + p;
            double expected = start[at];
            for (size_t k = 0; k < 16; ++k) expected += a_matrix[row][k] * b_matrix[k][column];
            worst = std::max(worst, std::abs(expected - result[at]));
        }
    CHECK(worst < 1e-5);
}

TEST_CASE("mma_tile's fragments", "[emulator]") {
    Runtime runtime(0);
    check_fragments<16, 8>(runtime, 1);
    check_fragments<16, 64>(runtime, 2);
    check_fragments<32, 24>(runtime, 3);
    check_fragments<64, 40>(runtime, 4);
    check_fragments<64, 128>(runtime, 5);
}

TEST_CASE("Emulated warp functions", "[emulator]") {
    Runtime runtime(0);
    const DeviceArray<WarpResults> results(runtime, 2 * 96);
    with_all_settings([&] {
        CU_LAUNCH(warp_functions, 2, 96, 0, runtime.stream(), results.data());
        const std::vector<WarpResults> read = results.read();
        for (size_t i = 0; i < read.size(); ++i) {
            const auto thread = static_cast<int64_t>(i), lane = thread % 32, first = thread - lane;
            uint32_t votes = 0;
            for (uint32_t l = 0; l < 32; l += 3) votes |= 1u << l;
            CHECK(read[i].xor_5 == (first + (lane ^ 5)) << 33);
            CHECK(read[i].from_7 == first + 7);
            CHECK(read[i].from_lane == first + 31 - lane);
            CHECK(read[i].sum == 31 * 16);
            CHECK(read[i].votes == votes);
            CHECK(read[i].maximum == 1.0f);
        }
    });
}

TEST_CASE("warp_sync orders the lanes of a warp", "[emulator]") {
    Runtime runtime(0);
    const DeviceArray<int> out(runtime, 3 * 128);
    with_all_settings([&] {
        CU_LAUNCH(warp_rotation, 3, 128, 0, runtime.stream(), out.data(), 40);
        const std::vector<int> result = out.read();
        for (size_t i = 0; i < result.size(); ++i) CHECK(result[i] == static_cast<int>((i + 40) % 32));
    });
}

TEST_CASE("Threads may return before others meet at a barrier", "[emulator]") {
    Runtime runtime(0);
    with_all_settings([&] {
        const DeviceArray<int> out(runtime, 100);
        CU_LAUNCH(early_return, 1, 100, 0, runtime.stream(), out.data(), 60);
        const std::vector<int> result = out.read();
        CHECK(std::count(result.begin(), result.end(), 7) == 60);
    });
}

TEST_CASE("cp_async_16 fills up with zeros", "[emulator]") {
    Runtime runtime(0);
    const DeviceArray<float> in(runtime, std::vector<float>{1, 2, 3, 4}), out(runtime, 4);
    for (int valid = 0; valid <= 4; ++valid) {
        CU_LAUNCH(partial_copy, 1, 32, 0, runtime.stream(), out.data(), in.data(), valid);
        std::vector<float> expected = {1, 2, 3, 4};
        std::fill(expected.begin() + valid, expected.end(), 0.0f);
        CHECK(out.read() == expected);
    }
}

TEST_CASE("Threads may share a word of shared memory", "[emulator]") {
    Runtime runtime(0);
    const DeviceArray<bfloat16> out(runtime, 64);
    with_all_settings([&] {
        CU_LAUNCH(halves, 1, 64, 0, runtime.stream(), out.data());
        const std::vector<bfloat16> result = out.read();
        for (size_t i = 0; i < 64; ++i) CHECK(result[i] == static_cast<float>(63 - i));
    });
}

TEST_CASE("Graphs of the emulated device", "[emulator]") {
    Runtime runtime(0);
    constexpr int count = 1000;
    const DeviceArray<int> values(runtime, std::vector<int>(count, 5));
    const auto add = [&] { CU_LAUNCH(add_one, 4, 256, 0, runtime.stream(), values.data(), count); };
    const auto graph = runtime.record([&] {
        add();
        add();
    });
    CHECK(values.read() == std::vector<int>(count, 5));  // recorded, not run
    runtime.launch(*graph);
    CHECK(values.read() == std::vector<int>(count, 7));
    const auto clearing = runtime.record([&] {
        runtime.fill_zero(values.data(), count * 4);
        add();
    });
    runtime.launch(*clearing);
    runtime.launch(*graph);
    CHECK(values.read() == std::vector<int>(count, 3));
    CHECK_THROWS_AS(runtime.record([&] { runtime.synchronize(); }), std::runtime_error);
    CHECK_THROWS_AS(runtime.record([&] { runtime.allocate(16); }), std::runtime_error);
    add();  // not recorded any more
    CHECK(values.read() == std::vector<int>(count, 4));
    CHECK(runtime.seconds(add, 2) > 0);
    CHECK(values.read() == std::vector<int>(count, 7));
}

TEST_CASE("Memory of the emulated device", "[emulator]") {
    Runtime runtime(0);
    auto* memory = static_cast<unsigned char*>(runtime.allocate(1000));
    CHECK(reinterpret_cast<uintptr_t>(memory) % 256 == 0);
    std::vector<unsigned char> read(1000, 1);
    runtime.copy_to_host(read.data(), memory, 1000);
    CHECK(read == std::vector<unsigned char>(1000, 0));
    CHECK_THROWS_AS(runtime.copy_to_host(read.data(), memory + 1, 1000), std::runtime_error);
    CHECK_THROWS_AS(runtime.fill_zero(memory - 1, 10), std::runtime_error);
    CHECK_THROWS_AS(runtime.copy_to_device(read.data(), read.data(), 10), std::runtime_error);
    const int64_t available = runtime.available_memory();
    runtime.release(memory);
    CHECK(runtime.available_memory() == available + 1000);
    CHECK(runtime.properties().name == "emulated CUDA device");
    CHECK_THROWS_AS(Runtime(1), std::runtime_error);
}
