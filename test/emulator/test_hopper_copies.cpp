// Bulk copies, barriers, named barriers and stmatrix on the emulated device: right against plain loops, and what the
// emulator says of wrong uses.
#include "test/emulator/hopper_fixture.h"

using namespace train_qat;
using train_qat::test::DeviceArray;
using train_qat::test::Fresh;
using train_qat::test::hopper_settings;

namespace train_qat::CU_BACKEND {
namespace {

// out (depth, rows, columns of the box) = the box at (x, y, z), as shared memory holds it but for the swizzle
template <typename T>
__global__ void copy_box(T* out, const CU_GRID_CONSTANT TensorMap map, int rank, int x, int y, int z,
                         int rows, int columns, bool swizzled) {
    CU_DYN_SHARED(unsigned char, dynamic);
    CU_SHARED(full, Barrier);
    unsigned char* const box = align_shared(dynamic);
    const int row_bytes = columns * static_cast<int>(sizeof(T));
    if (threadIdx.x == 0) {
        barrier_init(&full, 1);
        fence_barrier_init();
        barrier_arrive_expect(&full, rows * row_bytes);
        if (rank == 2)
            tensor_load(box, &map, x, y, &full);
        else
            tensor_load(box, &map, x, y, z, &full);
    }
    block_sync();
    barrier_wait(&full, 0);
    for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += 32) {
        const int row = i / columns, byte = i % columns * static_cast<int>(sizeof(T));
        const int at = swizzled ? swizzled_chunk(row, byte / 16) + byte % 16 : row * row_bytes + byte;
        store(out + i, load_shared(reinterpret_cast<const T*>(box + at)));
    }
}

// The box at (x, y) of the map's matrix = (or, added, +=) values 1, 2, 3 ... by rows of 32
__global__ void store_box(const CU_GRID_CONSTANT TensorMap map, int x, int y, int rows, bool add) {
    CU_DYN_SHARED(unsigned char, dynamic);
    unsigned char* const box = align_shared(dynamic);
    for (int i = static_cast<int>(threadIdx.x); i < rows * 32; i += 32)
        store_shared(reinterpret_cast<float*>(box + swizzled_chunk(i / 32, i % 32 / 4) + i % 4 * 4),
                     static_cast<float>(i + 1));
    fence_async_proxy();
    block_sync();
    if (threadIdx.x != 0) return;
    if (add)
        tensor_add(&map, x, y, box);
    else
        tensor_store(&map, x, y, box);
    bulk_commit();
    bulk_wait<0>();
}

// out = in, in pieces of 512 bytes through two stages
__global__ void copy_through_ring(float* out, const float* in, int pieces) {
    constexpr int numbers = 128, bytes = numbers * 4;
    CU_DYN_SHARED(float, buffer);
    CU_SHARED(full, Barrier[2]);
    CU_SHARED(empty, Barrier[2]);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 32);
        }
        fence_barrier_init();
    }
    block_sync();
    if (threadIdx.x == 32)
        for (int i = 0; i < pieces; ++i) {
            barrier_wait(&empty[i % 2], static_cast<uint32_t>(i / 2 + 1) & 1);
            barrier_arrive_expect(&full[i % 2], bytes);
            bulk_load(buffer + i % 2 * numbers, in + i * numbers, bytes, &full[i % 2]);
        }
    if (threadIdx.x >= 32) return;
    for (int i = 0; i < pieces; ++i) {
        barrier_wait(&full[i % 2], static_cast<uint32_t>(i / 2) & 1);
        for (int j = lane_index(); j < numbers; j += 32)
            store(out + i * numbers + j, load_shared(buffer + i % 2 * numbers + j));
        barrier_arrive(&empty[i % 2]);
    }
}

// Two warps in turn append to a row: warp 0, 1, 0, 1 ...
__global__ void take_turns(int* out, int turns) {
    CU_SHARED(next, int);
    if (threadIdx.x == 0) store_shared(&next, 0);
    block_sync();
    const int warp = warp_index();
    if (warp == 1) group_arrive(1, 64);
    for (int turn = 0; turn < turns; ++turn) {
        group_sync(1 + warp, 64);
        if (lane_index() == 0) {
            const int index = load_shared(&next);
            store(out + index, warp);
            store_shared(&next, index + 1);
        }
        if (warp == 0 || turn + 1 < turns) group_arrive(2 - warp, 64);
    }
}

__global__ void store_matrices(uint32_t* out, const uint32_t* in, bool transposed) {
    CU_DYN_SHARED(uint32_t, rows);
    uint32_t registers[4], back[4];
    for (int i = 0; i < 4; ++i) registers[i] = load(in + lane_index() * 4 + i);
    if (transposed)
        stmatrix_x4_trans(rows + lane_index() * 4, registers);
    else
        stmatrix_x4(rows + lane_index() * 4, registers);
    warp_sync();
    if (transposed)
        ldmatrix_x4_trans(back, rows + lane_index() * 4);
    else
        ldmatrix_x4(back, rows + lane_index() * 4);
    for (int i = 0; i < 4; ++i) {
        store(out + lane_index() * 4 + i, back[i]);
        store(out + 128 + lane_index() * 4 + i, load_shared(rows + lane_index() * 4 + i));
    }
}

// ---- wrong uses

enum class Misuse {
    misaligned_box,
    misaligned_bulk,
    odd_bulk,
    beyond_the_tensor,
    no_barrier,
    barrier_as_memory,
    barrier_twice,
    parity_of_two,
    no_such_group,
    group_of_a_part,
    left_arrival,
    copy_left_over,
    two_loads_at_once,
    wrong_rank,
    add_to_halves,
    not_a_map
};

template <Misuse misuse>
__global__ void misuse_copies(const CU_GRID_CONSTANT TensorMap map, const float* in) {
    CU_DYN_SHARED(unsigned char, dynamic);
    CU_SHARED(full, Barrier);
    unsigned char* const box = align_shared(dynamic);
    if (misuse == Misuse::no_such_group) group_sync(0, 32);
    if (misuse == Misuse::group_of_a_part) group_sync(1, 40);
    if (misuse == Misuse::left_arrival) group_arrive(3, 64);
    if (threadIdx.x != 0 || misuse == Misuse::left_arrival) return;
    if (misuse != Misuse::no_barrier) barrier_init(&full, 1);
    if (misuse == Misuse::barrier_twice) barrier_init(&full, 1);
    fence_barrier_init();
    if (misuse == Misuse::parity_of_two) barrier_wait(&full, 2);
    if (misuse == Misuse::barrier_as_memory) store_shared(reinterpret_cast<float*>(&full), 0.0f);
    if (misuse == Misuse::wrong_rank) tensor_load(box, &map, 0, 0, 0, &full);
    if (misuse == Misuse::add_to_halves) tensor_add(&map, 0, 0, box);
    if (misuse == Misuse::misaligned_bulk) bulk_load(box, in + 1, 16, &full);
    if (misuse == Misuse::odd_bulk) bulk_load(box, in, 24, &full);
    if (misuse == Misuse::beyond_the_tensor) bulk_load(box, in, 272, &full);
    const TensorMap copy = misuse == Misuse::not_a_map ? TensorMap() : map;
    tensor_load(box + (misuse == Misuse::misaligned_box ? 128 : 0), &copy, 0, 0, &full);
    if (misuse == Misuse::two_loads_at_once) tensor_load(box, &copy, 0, 0, &full);
}

}  // namespace
}  // namespace train_qat::CU_BACKEND

using namespace train_qat::CU_BACKEND;

namespace {

// Loads boxes at random places, also outside, of a random tensor of two or three dimensions.
template <typename T>
void check_loads(bool swizzled) {
    Fresh fresh;
    INFO("numbers from " << fresh.seed << ", element of " << sizeof(T) << " bytes, swizzled " << swizzled);
    constexpr int64_t size = sizeof(T), step = 16 / size;
    for (uint64_t seed : {0, 1, 2, 3, 4, 5, 6, 7}) {
        const emulator::SettingsScope scope(hopper_settings(seed));
        Runtime runtime(0);
        const int rank = 2 + static_cast<int>(seed % 2);
        const int64_t width = fresh.between(1, 150), rows = fresh.between(1, 40), depth = rank == 3 ? 3 : 1;
        const int64_t pitch = (width + step - 1) / step * step + step * fresh.between(0, 2);
        const std::vector<T> values = fresh.numbers<T>(depth * rows * pitch);
        const DeviceArray<T> in(runtime, values);
        const int columns = static_cast<int>(swizzled ? 128 / size : step * fresh.between(1, 8));
        const int box_rows = static_cast<int>(fresh.between(1, 30)), box_depth = rank == 3 ? 2 : 1;
        const TensorMap map = make_tensor_map(in.data(), {.name = "in",
                                                          .rank = rank,
                                                          .extent = {width, rows, depth},
                                                          .pitch = {pitch * size, rows * pitch * size},
                                                          .box = {columns, box_rows, box_depth},
                                                          .swizzled = swizzled});
        const DeviceArray<T> out(runtime, box_depth * box_rows * columns);
        const int x = static_cast<int>(fresh.between(-columns, width + 3)),
                  y = static_cast<int>(fresh.between(-9, rows)),
                  z = rank == 3 ? static_cast<int>(fresh.between(-1, 3)) : 0;
        CU_LAUNCH(copy_box<T>, 1, 32, 65536, runtime.stream(), out.data(), map, rank, x, y, z,
                  box_depth * box_rows, columns, swizzled);
        const std::vector<T> result = out.read();
        int wrong = 0;
        for (int k = 0; k < box_depth; ++k)
            for (int i = 0; i < box_rows; ++i)
                for (int j = 0; j < columns; ++j) {
                    const bool inside = x + j >= 0 && x + j < width && y + i >= 0 && y + i < rows &&
                                        z + k >= 0 && z + k < depth;
                    const double expected =
                        inside ? static_cast<double>(
                                     values[static_cast<size_t>(((z + k) * rows + y + i) * pitch + x + j)])
                               : 0;
                    wrong += static_cast<double>(
                                 result[static_cast<size_t>((k * box_rows + i) * columns + j)]) != expected;
                }
        INFO("box " << columns << " x " << box_rows << " at " << x << ", " << y << ", " << z << " of "
                    << width << " x " << rows);
        CHECK(wrong == 0);
    }
}

template <Misuse misuse>
std::string shortcoming(const std::vector<std::string>& parts,
                        const std::vector<uint64_t>& seeds = {0, 1, 2}) {
    for (uint64_t seed : seeds) {
        const emulator::SettingsScope scope(hopper_settings(seed));
        Runtime runtime(0);
        const DeviceArray<float> in(runtime, 64);
        const DeviceArray<bfloat16> halves(runtime, 64 * 64);
        const TensorMap map = make_matrix_map("halves", halves.data(), 64, 64, 32);
        const std::string lacks = test::lacking(
            test::failure_of(
                [&] { CU_LAUNCH((misuse_copies<misuse>), 1, 32, 8192, runtime.stream(), map, in.data()); }),
            parts);
        if (!lacks.empty()) return "schedule " + std::to_string(seed) + ": " + lacks;
    }
    return "";
}

}  // namespace

TEST_CASE("Tensor loads bring boxes with their tails and swizzle", "[emulator][hopper]") {
    check_loads<bfloat16>(true);
    check_loads<bfloat16>(false);
    check_loads<float>(true);
    check_loads<uint8_t>(false);
}

TEST_CASE("Tensor stores write, and add, what lies inside", "[emulator][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    for (bool add : {false, true})
        for (uint64_t seed : {0, 1, 2, 3}) {
            const emulator::SettingsScope scope(hopper_settings(seed));
            Runtime runtime(0);
            const int64_t columns = 4 * fresh.between(1, 20), rows = fresh.between(1, 30);
            const std::vector<float> values = fresh.numbers<float>(rows * columns);
            const DeviceArray<float> out(runtime, values);
            const int box_rows = static_cast<int>(fresh.between(1, 20));
            const int x = static_cast<int>(fresh.between(-31, columns)),
                      y = static_cast<int>(fresh.between(-19, rows));
            const unsigned blocks = add ? 3 : 1;
            CU_LAUNCH(store_box, blocks, 32, 8192, runtime.stream(),
                      make_matrix_map("out", out.data(), rows, columns, box_rows), x, y, box_rows, add);
            const std::vector<float> result = out.read();
            int wrong = 0;
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < columns; ++j) {
                    const auto at = static_cast<size_t>(i * columns + j);
                    const bool inside = i >= y && i < y + box_rows && j >= x && j < x + 32;
                    const auto stored = static_cast<float>((i - y) * 32 + (j - x) + 1);
                    const float expected = !inside ? values[at] : add ? values[at] + 3 * stored : stored;
                    wrong += std::abs(result[at] - expected) > 1e-3f;
                }
            CHECK(wrong == 0);
        }
}

TEST_CASE("Bulk loads through a ring of barriers", "[emulator][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    for (uint64_t seed : {0, 1, 2, 3, 4, 5}) {
        const emulator::SettingsScope scope(hopper_settings(seed));
        Runtime runtime(0);
        const int pieces = static_cast<int>(fresh.between(1, 9));
        const std::vector<float> values = fresh.numbers<float>(pieces * 128);
        const DeviceArray<float> in(runtime, values), out(runtime, pieces * 128);
        CU_LAUNCH(copy_through_ring, 1, 64, 1024, runtime.stream(), out.data(), in.data(), pieces);
        CHECK(out.read() == values);
    }
}

TEST_CASE("Named barriers order two warps", "[emulator][hopper]") {
    for (bool races : {false, true})
        for (uint64_t seed : {0, 1, 2, 3, 4, 5}) {
            emulator::Settings settings = hopper_settings(seed);
            settings.check_races = races;
            const emulator::SettingsScope scope(settings);
            Runtime runtime(0);
            constexpr int turns = 7;
            const DeviceArray<int> out(runtime, 2 * turns);
            CU_LAUNCH(take_turns, 1, 64, 0, runtime.stream(), out.data(), turns);
            const std::vector<int> order = out.read();
            for (size_t i = 0; i < order.size(); ++i) CHECK(order[i] == static_cast<int>(i % 2));
        }
}

TEST_CASE("stmatrix writes what ldmatrix reads", "[emulator][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    for (uint64_t seed : {0, 3})
        for (bool transposed : {false, true}) {
            const emulator::SettingsScope scope(hopper_settings(seed));
            Runtime runtime(0);
            std::vector<uint32_t> words(128);
            for (uint32_t& word : words) word = static_cast<uint32_t>(fresh.between(0, 0xffffffff));
            const DeviceArray<uint32_t> in(runtime, words), out(runtime, 256);
            CU_LAUNCH(store_matrices, 1, 32, 512, runtime.stream(), out.data(), in.data(), transposed);
            const std::vector<uint32_t> result = out.read();
            CHECK(std::vector<uint32_t>(result.begin(), result.begin() + 128) == words);
            int wrong = 0;
            for (uint32_t matrix = 0; matrix < 4; ++matrix)
                for (uint32_t row = 0; row < 8; ++row)
                    for (uint32_t column = 0; column < 8; ++column) {
                        const uint32_t r = transposed ? column : row, c = transposed ? row : column;
                        const uint32_t half = words[(r * 4 + c / 2) * 4 + matrix] >> c % 2 * 16 & 0xffff;
                        const uint32_t stored =
                            result[128 + (8 * matrix + row) * 4 + column / 2] >> column % 2 * 16 & 0xffff;
                        wrong += half != stored;
                    }
            CHECK(wrong == 0);
        }
}

TEST_CASE("The emulator finds wrong uses of bulk copies and barriers", "[emulator][hopper]") {
    CHECK(shortcoming<Misuse::misaligned_box>(
              {"thread (0,0,0): misaligned destination of a tensor load: 4096 bytes at byte ",
               "must be a multiple of 1024 (", "test_hopper_copies.cpp:"}) == "");
    CHECK(shortcoming<Misuse::misaligned_bulk>({"misaligned source of a bulk load: 16 bytes at 0x"}) == "");
    CHECK(shortcoming<Misuse::odd_bulk>({"misaligned source of a bulk load: 24 bytes at 0x"}) == "");
    CHECK(shortcoming<Misuse::beyond_the_tensor>({"global memory out of bounds: load of 272 bytes at 0x"}) ==
          "");
    CHECK(shortcoming<Misuse::no_barrier>({"starts a bulk copy that lands at something that barrier_init has "
                                           "not made a barrier: byte 0 of full"}) == "");
    CHECK(shortcoming<Misuse::barrier_as_memory>(
              {"writes a barrier as if it were plain shared memory: byte 0 of full, which has 8"}) == "");
    CHECK(shortcoming<Misuse::barrier_twice>({"makes the barrier at byte 0 of full, which has 8 twice"}) ==
          "");
    CHECK(shortcoming<Misuse::parity_of_two>({"with parity 2, which is neither 0 nor 1"}) == "");
    CHECK(shortcoming<Misuse::no_such_group>({"group_sync of barrier 0: 1 ... 15, and 0 is block_sync's"}) ==
          "");
    CHECK(shortcoming<Misuse::group_of_a_part>({"with 40 threads, which is no multiple of 32"}) == "");
    CHECK(shortcoming<Misuse::left_arrival>(
              {"the block ends with 32 of 64 threads arrived at named barrier 3"}) == "");
    CHECK(shortcoming<Misuse::copy_left_over>({"the block ends while this bulk copy is under way"}, {0}) ==
          "");  // else it may land
    CHECK(shortcoming<Misuse::two_loads_at_once>(
              {"writes shared memory in use: the bulk copy at ", " has not landed"}) == "");
    CHECK(shortcoming<Misuse::wrong_rank>({"uses a tensor map of 2 dimensions with 3 coordinates"}) == "");
    CHECK(shortcoming<Misuse::add_to_halves>({"adds by a tensor map whose elements are not float32"}) == "");
    CHECK(shortcoming<Misuse::not_a_map>({"uses a tensor map that make_tensor_map did not make"}) == "");
}

TEST_CASE("Tensor maps that a card would refuse are refused by name", "[emulator][hopper]") {
    Runtime runtime(0);
    const DeviceArray<bfloat16> memory(runtime, 4096);
    const auto refusal = [&](int64_t shift, const TensorLayout& layout) -> std::string {
        try {
            make_tensor_map(memory.data() + shift, layout);
        } catch (const std::runtime_error& error) {
            return error.what();
        }
        return "";
    };
    const TensorLayout fine{.name = "x", .rank = 2, .extent = {60, 30}, .pitch = {128}, .box = {64, 30}};
    CHECK(refusal(0, fine) == "");
    CHECK(refusal(1, fine).find("tensor map of x: the address is ") == 0);
    TensorLayout layout = fine;
    layout.pitch[0] = 120;
    CHECK(refusal(0, layout) ==
          "tensor map of x: the pitch of dimension 1 is 120, which must be a multiple of 16 bytes below "
          "2^40: pad the rows");
    layout = fine;
    layout.box[0] = 32;
    CHECK(refusal(0, layout) ==
          "tensor map of x: the box's row is 64, which must be 128 bytes with 128-byte swizzle");
    layout.swizzled = false;
    CHECK(refusal(0, layout) == "");
    layout.box[0] = 4;
    CHECK(refusal(0, layout) == "tensor map of x: the box's row is 8, which must be a multiple of 16 bytes");
    layout = fine;
    layout.box[1] = 257;
    CHECK(refusal(0, layout) == "tensor map of x: the box of dimension 1 is 257, which must be 1 ... 256");
    layout = fine;
    layout.extent[1] = 0;
    CHECK(refusal(0, layout) == "tensor map of x: the extent of dimension 1 is 0, which must be 1 ... 2^32");
    layout = fine;
    layout.rank = 4;
    CHECK(refusal(0, layout) == "tensor map of x: the rank is 4, which must be 2 or 3");
}
