// wgmma on the emulated device against a plain loop: every width, both ways that an operand can lie, a in registers, and
// what the emulator says of wrong uses.
#include "test/emulator/hopper_fixture.h"

using namespace train_qat;
using train_qat::test::DeviceArray;
using train_qat::test::Fresh;
using train_qat::test::hopper_settings;

namespace train_qat::CU_BACKEND {
namespace {

constexpr int depth = 64, chunk_bytes = 64 * swizzle_row_bytes;

// A tile of `rows` rows by 64 k: from (rows, k) as it lies, from (k, rows) in chunks of 64 rows.
void load_tile(unsigned char* tile, const TensorMap* map, Major major, int rows, Barrier* barrier) {
    if (major == Major::k) return tensor_load(tile, map, 0, 0, barrier);
    for (int row = 0; row < rows; row += 64) tensor_load(tile + row / 64 * chunk_bytes, map, row, 0, barrier);
}

// z (64, N, float32) (+)= a b, where a is (64, 64) and b (64, N)
template <int N, Major a_major, Major b_major>
__global__ void multiply_tiles(float* z, const CU_GRID_CONSTANT TensorMap a_map,
                               const CU_GRID_CONSTANT TensorMap b_map, const uint32_t* fragments,
                               bool accumulate) {
    CU_DYN_SHARED(unsigned char, dynamic);
    CU_SHARED(full, Barrier);
    unsigned char *const a_tile = align_shared(dynamic), *const b_tile = a_tile + chunk_bytes;
    if (threadIdx.x == 0) {
        barrier_init(&full, 1);
        fence_barrier_init();
        barrier_arrive_expect(&full, chunk_bytes + N * swizzle_row_bytes);
        load_tile(a_tile, &a_map, a_major, 64, &full);
        load_tile(b_tile, &b_map, b_major, N, &full);
    }
    block_sync();
    barrier_wait(&full, 0);
    const int lane = lane_index(), warp = warp_index();
    float sum[N / 2];
    for (int i = 0; i < N / 2; ++i) sum[i] = 1.0f;
    const uint64_t a =
        a_major == Major::k ? k_major_descriptor(a_tile) : mn_major_descriptor(a_tile, chunk_bytes);
    const uint64_t b =
        b_major == Major::k ? k_major_descriptor(b_tile) : mn_major_descriptor(b_tile, chunk_bytes);
    constexpr int a_step = a_major == Major::k ? 32 : 2048, b_step = b_major == Major::k ? 32 : 2048;
    uint32_t part[depth / 16][4];
    wgmma_fence();
    for (int step = 0; step < depth / 16; ++step) {
        const uint64_t b_here = advance_descriptor(b, step * b_step);
        if (fragments == nullptr) {
            wgmma<a_major, b_major>(sum, advance_descriptor(a, step * a_step), b_here,
                                    accumulate || step > 0);
            continue;
        }
        for (int i = 0; i < 4; ++i) part[step][i] = load(fragments + ((step * 4 + warp) * 32 + lane) * 4 + i);
        wgmma<b_major>(sum, part[step], b_here, accumulate || step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(sum);
    for (int i = 0; i < N / 2; ++i)
        store(z + (16 * warp + lane / 4 + i / 2 % 2 * 8) * N + i / 4 * 8 + lane % 4 * 2 + i % 2, sum[i]);
}

// ---- wrong uses of wgmma by a block of one warpgroup, on a tile of zeros

enum class Misuse {
    changed_operand,
    changed_sums,
    overlapping_sums,
    never_waited,
    no_swizzle_in_descriptor,
    unfenced_store,
    overwritten_tile,
    one_warp_more,
    other_lanes
};

template <Misuse misuse>
__global__ void misuse_wgmma(float* z) {
    CU_DYN_SHARED(unsigned char, dynamic);
    unsigned char* const tile = align_shared(dynamic);
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread * 16; i < chunk_bytes; i += 128 * 16)
        store_shared_vector(reinterpret_cast<float*>(tile + i), Vector<float, 4>{});
    if (misuse != Misuse::unfenced_store || thread != 73) fence_async_proxy();
    block_sync();
    uint64_t b = k_major_descriptor(tile);
    if (misuse == Misuse::no_swizzle_in_descriptor) b &= ~(uint64_t{3} << 62);
    if (misuse == Misuse::other_lanes && thread == 40) b = advance_descriptor(b, 32);
    float sum[2][32];
    float* const shifted = &sum[0][4];
    uint32_t part[4] = {};
    wgmma_fence();
    wgmma(sum[0], part, b, false);
    if (misuse == Misuse::overlapping_sums) wgmma(*reinterpret_cast<float(*)[32]>(shifted), part, b, false);
    if (misuse == Misuse::one_warp_more && thread / 32 == 3) wgmma(sum[1], part, b, false);
    wgmma_commit();
    if (misuse == Misuse::changed_operand && thread == 99) part[2] = 1;
    if (misuse == Misuse::changed_sums && thread == 99) sum[0][31] = 1;
    if (misuse == Misuse::overwritten_tile && thread == 99)
        store_shared(reinterpret_cast<float*>(tile + 128), 1.0f);
    if (misuse != Misuse::never_waited) {
        wgmma_wait<0>();
        keep_registers(sum[0]);
        store(z + thread, sum[0][0]);
    }
}

}  // namespace
}  // namespace train_qat::CU_BACKEND

using namespace train_qat::CU_BACKEND;

namespace {

// A matrix (rows, 64) of which only a part is there, as it lies in memory and as the product sees it.
struct Operand {
    Major major;
    int rows, rows_there, depth_there;
    std::vector<bfloat16> values;
    DeviceArray<bfloat16> memory;

    Operand(Runtime& runtime, Fresh& fresh, Major major, int rows)
        : major(major),
          rows(rows),
          rows_there(static_cast<int>(8 * fresh.between(1, rows / 8))),
          depth_there(static_cast<int>(8 * fresh.between(1, depth / 8))),
          values(fresh.numbers<bfloat16>(rows_there * depth_there)),
          memory(runtime, values) {}
    TensorMap map() const {
        if (major == Major::k)
            return make_matrix_map("operand", memory.data(), rows_there, depth_there, rows);
        return make_matrix_map("operand", memory.data(), depth_there, rows_there, depth);
    }
    double at(int row, int k) const {
        if (row >= rows_there || k >= depth_there) return 0;
        return values[static_cast<size_t>(major == Major::k ? row * depth_there + k : k * rows_there + row)];
    }
    std::vector<uint32_t> fragments() const {
        std::vector<uint32_t> words;
        for (int step = 0; step < depth / 16; ++step)
            for (int thread = 0; thread < 128; ++thread)
                for (int i = 0; i < 4; ++i) {
                    const int row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
                    const int k = step * 16 + thread % 4 * 2 + i / 2 * 8;
                    words.push_back(
                        pack_bfloat16(static_cast<float>(at(row, k)), static_cast<float>(at(row, k + 1))));
                }
        return words;
    }
};

// Elements of a product that differ from a plain loop's: all numbers are exact.
template <int N, Major a_major, Major b_major>
int wrong_elements(Fresh& fresh, bool a_in_registers, bool accumulate, uint64_t seed) {
    const emulator::SettingsScope scope(hopper_settings(seed));
    Runtime runtime(0);
    const Operand a(runtime, fresh, a_major, 64), b(runtime, fresh, b_major, N);
    const DeviceArray<uint32_t> fragments(runtime, a.fragments());
    const DeviceArray<float> z(runtime, 64 * N);
    CU_LAUNCH((multiply_tiles<N, a_major, b_major>), 1, 128,
              (swizzle_atom_bytes + (64 + N) * swizzle_row_bytes), runtime.stream(), z.data(), a.map(),
              b.map(), a_in_registers ? fragments.data() : nullptr, accumulate);
    const std::vector<float> result = z.read();
    int wrong = 0;
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j < N; ++j) {
            double sum = accumulate ? 1 : 0;
            for (int k = 0; k < depth; ++k) sum += a.at(i, k) * b.at(j, k);
            wrong += static_cast<double>(result[static_cast<size_t>(i * N + j)]) != sum;
        }
    return wrong;
}

template <int N>
void check_width() {
    Fresh fresh;
    INFO("N " << N << ", numbers from " << fresh.seed);
    for (uint64_t seed : {0, 5})
        for (bool accumulate : {false, true}) {
            CHECK(wrong_elements<N, Major::k, Major::k>(fresh, false, accumulate, seed) == 0);
            CHECK(wrong_elements<N, Major::mn, Major::k>(fresh, false, accumulate, seed) == 0);
            CHECK(wrong_elements<N, Major::k, Major::mn>(fresh, false, accumulate, seed) == 0);
            CHECK(wrong_elements<N, Major::mn, Major::mn>(fresh, false, accumulate, seed) == 0);
            CHECK(wrong_elements<N, Major::k, Major::k>(fresh, true, accumulate, seed) == 0);
            CHECK(wrong_elements<N, Major::k, Major::mn>(fresh, true, accumulate, seed) == 0);
        }
}

template <Misuse misuse>
std::string shortcoming(std::vector<std::string> parts) {
    for (uint64_t seed : {0, 1, 2}) {
        const emulator::SettingsScope scope(hopper_settings(seed));
        Runtime runtime(0);
        const DeviceArray<float> z(runtime, 128);
        const std::string lacks =
            test::lacking(test::failure_of([&] {
                              CU_LAUNCH((misuse_wgmma<misuse>), 1, 128, 16384, runtime.stream(), z.data());
                          }),
                          parts);
        if (!lacks.empty()) return "schedule " + std::to_string(seed) + ": " + lacks;
    }
    return "";
}

}  // namespace

TEST_CASE("wgmma multiplies 64 columns", "[emulator][hopper]") {
    check_width<64>();
}
TEST_CASE("wgmma multiplies 128 columns", "[emulator][hopper]") {
    check_width<128>();
}
TEST_CASE("wgmma multiplies 192 columns", "[emulator][hopper]") {
    check_width<192>();
}
TEST_CASE("wgmma multiplies 256 columns", "[emulator][hopper]") {
    check_width<256>();
}

TEST_CASE("The emulator finds wrong uses of wgmma", "[emulator][hopper]") {
    CHECK(shortcoming<Misuse::changed_operand>({"thread (99,0,0): the registers that the wgmma at ",
                                                " reads were changed before it was waited for"}) == "");
    CHECK(shortcoming<Misuse::changed_sums>({"thread (99,0,0): the sums of the wgmma at ",
                                             " were changed before it was waited for"}) == "");
    CHECK(shortcoming<Misuse::overlapping_sums>({"calls wgmma with sums that overlap those of the wgmma at ",
                                                 "in flight with another shape"}) == "");
    CHECK(shortcoming<Misuse::never_waited>({"returns while the wgmma at ", " is in flight"}) == "");
    CHECK(shortcoming<Misuse::no_swizzle_in_descriptor>(
              {"calls wgmma with a descriptor that is not of a tile with 128-byte swizzle"}) == "");
    CHECK(shortcoming<Misuse::unfenced_store>(
              {"wgmma reads what thread (73,0,0) has written with no fence_async_proxy since: byte "}) == "");
    CHECK(
        shortcoming<Misuse::overwritten_tile>({"thread (99,0,0): writes shared memory in use: the wgmma at ",
                                               " has not been waited for: byte "}) == "");
    CHECK(shortcoming<Misuse::one_warp_more>({"not all warps of the warpgroup have called the wgmma"}) == "");
    CHECK(shortcoming<Misuse::other_lanes>(
              {"calls wgmma with other operands than another lane of its warp"}) == "");
}
