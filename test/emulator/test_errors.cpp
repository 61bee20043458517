// The CUDA emulator finds what is wrong with a kernel and says where: kernels that break one rule each.
#include "test/emulator/emulator_fixture.h"

using namespace train_qat;
using train_qat::test::DeviceArray;

namespace train_qat::CU_BACKEND {
namespace {

// The line of the wrong access, kept when a thread comes by. One line each: a macro's arguments may be said
// to be on another.
std::atomic<int> wrong_line{0};
#define WRONG (wrong_line = __LINE__)

// ---- barriers and meetings

__global__ void divergent_barrier(int* out) {
    if (threadIdx.x < 32)
        block_sync();
    else
        WRONG, block_sync();
    store(out + threadIdx.x, 1);
}

__global__ void barrier_against_shuffle(int* out) {
    int value = 1;
    if (lane_index() < 20)
        value = shuffle(value, 0);
    else
        WRONG, block_sync();
    store(out + threadIdx.x, value);
}

__global__ void shuffle_against_barrier(int* out) {
    int value = 1;
    if (lane_index() >= 20)
        WRONG, value = shuffle(value, 0);
    else
        block_sync();
    store(out + threadIdx.x, value);
}

__global__ void shuffle_after_return(int* out) {
    if (threadIdx.x == 35) return;
    WRONG, store(out + threadIdx.x, shuffle(1, 0));
}

__global__ void return_during_shuffle(int* out) {
    if (threadIdx.x == 63) return;
    WRONG, store(out + threadIdx.x, shuffle(1, 0));
}

__global__ void shuffles_at_two_lines(int* out) {
    int value = 0;
    if (lane_index() < 31)
        value = shuffle_xor(1, 1);
    else
        WRONG, value = shuffle_xor(1, 1);
    store(out + threadIdx.x, value);
}

__global__ void part_of_a_warp(float* out) {
    WRONG, store(out + threadIdx.x, shuffle(1.0f, 0));
}

// Thread 32 waits for thread 0 to write.
__global__ void spinning(int* out) {
    if (threadIdx.x == 32)
        while (WRONG, load(out) == 0) {
        }
    block_sync();
    if (threadIdx.x == 0) store(out, 1);
}

// ---- addresses

__global__ void misaligned_scalar(float* out) {
    if (threadIdx.x == 3) WRONG, store(reinterpret_cast<float*>(reinterpret_cast<char*>(out) + 2), 1.0f);
}
__global__ void misaligned_load(float* out, const float* in) {
    const int i = static_cast<int>(threadIdx.x);
    if (i == 3) WRONG, store_vector(out, load_vector<4>(in + i));
}
__global__ void misaligned_store(bfloat16* out) {
    if (threadIdx.x == 5) WRONG, store_vector(out + 4, Vector<bfloat16, 8>{});
}
__global__ void misaligned_shared(float* out) {
    CU_SHARED(row, float[32]);  // 4-byte aligned is all that is promised
    store_shared(&row[threadIdx.x], 0.0f);
    block_sync();
    if (threadIdx.x == 2) WRONG, store_vector(out, load_shared_vector<4>(&row[0]));
}
__global__ void misaligned_ldmatrix(uint32_t* out) {
    CU_DYN_SHARED(bfloat16, tile);
    for (int i = 0; i < 33; ++i) store_shared(&tile[static_cast<int>(threadIdx.x) * 33 + i], bfloat16(1.0f));
    warp_sync();
    uint32_t four[4];
    WRONG, ldmatrix_x4(four, tile + lane_index() * 33);
    store(out + threadIdx.x, four[0]);
}
__global__ void misaligned_copy(const float* in) {
    CU_DYN_SHARED(float, row);
    if (threadIdx.x == 1) WRONG, cp_async_16(row, in + 1);
}

__global__ void beyond_the_end(float* out, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i <= count) WRONG, store(out + i, 1.0f);
}
__global__ void before_the_start(const float* in, float* out) {
    if (threadIdx.x == 7) WRONG, store(out, load(in - 1));
}
__global__ void host_memory(float* out, const float* in) {
    if (threadIdx.x == 0) WRONG, store(out, load(in));
}
__global__ void copy_beyond_the_end(const float* in, int count) {
    CU_DYN_SHARED(float, row);
    if (threadIdx.x == 0) WRONG, cp_async_16(row, in + count, 4);
}
__global__ void global_load_of_shared(float* out) {
    CU_SHARED(value, float);
    store_shared(&value, 1.0f);
    if (threadIdx.x == 0) WRONG, store(out, load(&value));
}
__global__ void shared_load_of_global(float* out) {
    if (threadIdx.x == 0) WRONG, store(out, load_shared(out));
}
__global__ void shared_overflow(float* out) {
    CU_SHARED(first, float[32]);
    CU_SHARED(second, float[32]);
    store_shared(&second[threadIdx.x], 0.0f);
    if (threadIdx.x == 9) WRONG, store_shared(&first[32], 0.0f);
    store(out + threadIdx.x, load_shared(&second[threadIdx.x]));
}
__global__ void dynamic_shared_overflow() {
    CU_DYN_SHARED(float, row);
    const int i = static_cast<int>(threadIdx.x);
    WRONG, store_shared(row + i, 0.0f);
}
__global__ void too_much_shared() {
    CU_SHARED(small, float[100]);
    wrong_line = __LINE__ + 1;
    CU_SHARED(large, float[12200]);
    store_shared(&small[0], 0.0f);
    store_shared(&large[0], 0.0f);
}

// ---- values that are not there

__global__ void unwritten_shared(float* out) {
    CU_SHARED(row, float[64]);
    if (threadIdx.x != 40) store_shared(&row[threadIdx.x], 1.0f);
    block_sync();
    WRONG, store(out + threadIdx.x, load_shared(&row[threadIdx.x]));
}
// The second block sees the first one's shared memory on a real GPU.
__global__ void shared_of_another_block(float* out) {
    CU_SHARED(value, float);
    if (threadIdx.x == 0 && blockIdx.x == 0) store_shared(&value, 1.0f);
    block_sync();
    if (threadIdx.x == 3) WRONG, store(out + blockIdx.x, load_shared(&value));
}
__global__ void missing_wait(float* out, const float* in) {
    CU_DYN_SHARED(float, row);
    cp_async_16(row + threadIdx.x * 4, in + threadIdx.x * 4);
    cp_async_commit();
    block_sync();
    WRONG, store(out + threadIdx.x, load_shared(row + threadIdx.x));
}
// Waits for all groups but the newest, and reads the newest.
__global__ void waits_for_too_few(float* out, const float* in) {
    CU_DYN_SHARED(float, row);
    for (int stage = 0; stage < 2; ++stage) {
        cp_async_16(row + stage * 128 + threadIdx.x * 4, in + threadIdx.x * 4);
        cp_async_commit();
    }
    cp_async_wait<1>();
    block_sync();
    store(out + threadIdx.x, load_shared(row + threadIdx.x));
    WRONG, store(out + threadIdx.x, load_shared(row + 128 + threadIdx.x));
}
// What the copy brings may come after what is written here.
__global__ void overwrites_a_copy(const float* in) {
    CU_DYN_SHARED(float, row);
    cp_async_16(row + threadIdx.x * 4, in + threadIdx.x * 4);
    cp_async_commit();
    block_sync();
    WRONG, store_shared(row + threadIdx.x, 1.0f);
}
__global__ void copy_without_barrier(float* out, const float* in) {
    CU_DYN_SHARED(float, row);
    WRONG, cp_async_16(row + threadIdx.x * 4, in + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<0>();
    WRONG, store(out + threadIdx.x, load_shared(row + (threadIdx.x * 4 + 4) % 128));
}

// ---- races

__global__ void missing_barrier(float* out) {
    CU_SHARED(row, float[64]);
    WRONG, store_shared(&row[threadIdx.x], 1.0f);
    WRONG, store(out + threadIdx.x, load_shared(&row[63 - threadIdx.x]));
}
__global__ void missing_barrier_before_overwriting(float* out) {
    CU_SHARED(row, float[64]);
    float value = 1.0f;
    for (int i = 0; i < 2; ++i) {
        WRONG, store_shared(&row[threadIdx.x], value);
        block_sync();
        WRONG, value = load_shared(&row[threadIdx.x / 32 * 32]);
    }
    store(out + threadIdx.x, value);
}
__global__ void missing_warp_sync(float* out) {
    CU_SHARED(row, float[32]);
    WRONG, store_shared(&row[threadIdx.x], 1.0f);
    const float other = shuffle(1.0f, 0);  // exchanges values, orders nothing
    WRONG, store(out + threadIdx.x, other + load_shared(&row[31 - threadIdx.x]));
}
__global__ void warp_sync_for_a_block(float* out) {
    CU_SHARED(row, float[64]);
    store_shared(&row[threadIdx.x], 1.0f);
    block_sync();
    WRONG, store_shared(&row[threadIdx.x], 2.0f);
    warp_sync();
    WRONG, store(out + threadIdx.x, load_shared(&row[63 - threadIdx.x]));
}
__global__ void two_writers(bfloat16* out) {
    WRONG, store(out + threadIdx.x / 2, bfloat16(1.0f));
}
__global__ void race_between_blocks(float* out) {
    if (threadIdx.x == 5) WRONG, store(out, static_cast<float>(blockIdx.x));
}
__global__ void reads_what_another_block_writes(float* sums) {
    if (blockIdx.x == 2) {
        if (threadIdx.x == 4) WRONG, store(sums, load(sums) + 1.0f);
    } else if (threadIdx.x == 0) {
        WRONG, store(sums + 1 + blockIdx.x, load(sums));
    }
}
__global__ void throws() {
    if (threadIdx.x == 1) throw std::runtime_error("no such thing");
}

__global__ void fill(float* out, float value) {
    store(out + blockIdx.x * blockDim.x + threadIdx.x, value);
}

}  // namespace
}  // namespace train_qat::CU_BACKEND

using namespace train_qat::CU_BACKEND;

namespace {

struct Device {
    emulator::SettingsScope defaults{emulator::Settings()};
    Runtime runtime{0};
    DeviceArray<float> in{runtime, 256}, out{runtime, 256};

    bool works() {
        CU_LAUNCH(fill, 2, 128, 0, runtime.stream(), out.data(), 3.0f);
        return out.read() == std::vector<float>(256, 3.0f);
    }
};

// "" when `work` fails with one line that holds all parts and the line marked WRONG, and the device works
// after it; else what was wrong.
template <typename Work>
std::string shortcoming(Device& device, const Work& work, std::vector<std::string> parts,
                        bool names_line = true) {
    wrong_line = 0;
    std::string message;
    try {
        work();
        return "no error";
    } catch (const emulator::LaunchError& error) {
        message = error.what();
    }
    const int line = wrong_line;
    if (names_line) {
        parts.push_back("test_errors.cpp:" + std::to_string(line));
        parts.push_back("block (");
        parts.push_back("thread (");
    }
    for (const std::string& part : parts)
        if (message.find(part) == std::string::npos) return "no \"" + part + "\" in: " + message;
    if (message.find('\n') != std::string::npos) return "more than a line: " + message;
    return device.works() ? "" : "the device does not work any more";
}

emulator::Settings races() {
    emulator::Settings settings;
    settings.check_races = true;
    return settings;
}

}  // namespace

#define LAUNCH(kernel, grid, block, shared, ...) \
    [&] { CU_LAUNCH(kernel, grid, block, shared, device.runtime.stream() __VA_OPT__(, ) __VA_ARGS__); }

TEST_CASE("The emulator finds wrong barriers and meetings", "[emulator]") {
    Device device;
    const DeviceArray<int> array(device.runtime, 64);
    int* out = array.data();
    for (uint64_t seed : {0, 1, 2, 3}) {
        emulator::Settings settings;
        settings.schedule_seed = seed;
        settings.patience = 10000;
        const emulator::SettingsScope scope(settings);
        INFO("seed " << seed);
        // With a seed, either of two conflicting threads may come second.
        const std::vector<std::string> any;
        const auto natural = [&](std::vector<std::string> parts) { return seed == 0 ? parts : any; };
        CHECK(shortcoming(
                  device, LAUNCH(divergent_barrier, 1, 64, 0, out),
                  natural({"kernel divergent_barrier, block (0,0,0), thread (32,0,0): barrier divergence: "
                           "calls block_sync while other threads wait in block_sync at "})) == "");
        CHECK(shortcoming(device, LAUNCH(barrier_against_shuffle, 1, 64, 0, out),
                          natural({"thread (20,0,0)",
                                   "calls block_sync while lanes 0, 1, 2, 3 and 16 more of its "
                                   "warp wait in shuffle at "})) == "");
        CHECK(shortcoming(device, LAUNCH(shuffle_against_barrier, 1, 64, 0, out),
                          natural({"thread (20,0,0)",
                                   "calls shuffle while lanes 0, 1, 2, 3 and 16 more of its warp "
                                   "wait in block_sync at "})) == "");
        CHECK(shortcoming(device, LAUNCH(shuffle_after_return, 2, 64, 0, out),
                          natural({"kernel shuffle_after_return",
                                   "thread (35,0,0): returns while lanes 0, 1, 2 of "
                                   "its warp wait in shuffle"})) == "");
        CHECK(shortcoming(device, LAUNCH(return_during_shuffle, 1, 64, 0, out), {"shuffle"}) == "");
        CHECK(shortcoming(device, LAUNCH(shuffles_at_two_lines, 1, 32, 0, out),
                          natural({"thread (31,0,0)"})) == "");
        CHECK(shortcoming(device, LAUNCH(part_of_a_warp, 1, 40, 0, device.out.data()),
                          {"kernel part_of_a_warp", "lane 8 has returned or does not exist"}) == "");
        const DeviceArray<int> flag(device.runtime, 64);
        CHECK(shortcoming(device, LAUNCH(spinning, 1, 64, 0, flag.data()),
                          {"kernel spinning", "thread (32,0,0)", "waits in a loop for another thread"}) ==
              "");
    }
}

TEST_CASE("The emulator finds wrong addresses", "[emulator]") {
    Device device;
    float* out = device.out.data();
    const float* in = device.in.data();
    constexpr int count = 256;
    const DeviceArray<bfloat16> halves(device.runtime, 64);
    const DeviceArray<uint32_t> words(device.runtime, 64);

    CHECK(shortcoming(
              device, LAUNCH(misaligned_scalar, 1, 32, 0, out),
              {"kernel misaligned_scalar, block (0,0,0), thread (3,0,0): misaligned global store: 4 bytes at "
               "0x"}) == "");
    CHECK(shortcoming(device, LAUNCH(misaligned_load, 2, 32, 0, out, in),
                      {"thread (3,0,0): misaligned global load: 16 bytes", "not a multiple of 16"}) == "");
    CHECK(shortcoming(device, LAUNCH(misaligned_store, 1, dim3(4, 2), 0, halves.data()),
                      {"kernel misaligned_store", "misaligned global store"}) == "no error");
    CHECK(shortcoming(device, LAUNCH(misaligned_store, 1, 32, 0, halves.data()),
                      {"thread (5,0,0): misaligned global store"}) == "");
    CHECK(shortcoming(device, LAUNCH(misaligned_shared, 1, 32, 0, out),
                      {"thread (2,0,0): misaligned shared load: 16 bytes"}) == "");
    CHECK(shortcoming(device, LAUNCH(misaligned_ldmatrix, 1, 32, 32 * 33 * 2, words.data()),
                      {"thread (31,0,0): misaligned ldmatrix row"}) == "");
    CHECK(shortcoming(device, LAUNCH(misaligned_copy, 1, 32, 64, in),
                      {"thread (1,0,0): misaligned cp_async_16 from global memory"}) == "");

    CHECK(shortcoming(
              device, LAUNCH(beyond_the_end, dim3(2, 2), 200, 0, out, count),
              {"kernel beyond_the_end, block (1,0,0), thread (56,0,0): global memory out of bounds: store of "
               "4 bytes at 0x",
               "byte 1024 of one that has 1024"}) == "");
    CHECK(shortcoming(device, LAUNCH(before_the_start, 1, 32, 0, in, out),
                      {"thread (7,0,0): global memory out of bounds: load of 4 bytes"}) == "");
    CHECK(shortcoming(device, LAUNCH(copy_beyond_the_end, 1, 32, 64, in, count),
                      {"global memory out of bounds: load of 4 bytes"}) == "");
    CHECK(shortcoming(device, LAUNCH(global_load_of_shared, 1, 32, 0, out), {"which is in shared memory"}) ==
          "");
    CHECK(shortcoming(device, LAUNCH(shared_load_of_global, 1, 32, 0, out),
                      {"which is not in shared memory"}) == "");
    CHECK(
        shortcoming(
            device, LAUNCH(shared_overflow, 1, 32, 0, out),
            {"thread (9,0,0): shared memory out of bounds: store of 4 bytes at byte 128 of first, which has "
             "128"}) == "");
    CHECK(shortcoming(
              device, LAUNCH(dynamic_shared_overflow, 1, 32, 100),
              {"thread (25,0,0): shared memory out of bounds: store of 4 bytes at byte 100 of the dynamic "
               "shared memory, which has 100"}) == "");
    CHECK(shortcoming(device, LAUNCH(too_much_shared, 1, 32, 0),
                      {"no room for shared variable large of 48800"}) == "");

    const float on_the_host = 5;
    CHECK(shortcoming(device, LAUNCH(host_memory, 1, 32, 0, out, &on_the_host),
                      {"global memory out of bounds"}) == "");
    emulator::Settings lenient;
    lenient.allow_host_memory = true;
    const emulator::SettingsScope scope(lenient);
    CU_LAUNCH(host_memory, 1, 32, 0, device.runtime.stream(), out, &on_the_host);
    CHECK(device.out.read()[0] == 5);
}

TEST_CASE("The emulator finds released memory and impossible launches", "[emulator]") {
    Device device;
    auto* released = static_cast<float*>(device.runtime.allocate(1024));
    CU_LAUNCH(fill, 1, 32, 0, device.runtime.stream(), released, 1.0f);
    device.runtime.release(released);
    CHECK_THROWS_AS(LAUNCH(fill, 1, 32, 0, released, 1.0f)(), emulator::LaunchError);

    float* out = device.out.data();
    CHECK(shortcoming(device, LAUNCH(fill, 0, 32, 0, out, 1.0f), {"kernel fill: no valid grid: (0,1,1)"},
                      false) == "");
    CHECK(shortcoming(device, LAUNCH(fill, dim3(1, 65536), 32, 0, out, 1.0f), {"no valid grid"}, false) ==
          "");
    CHECK(shortcoming(device, LAUNCH(fill, 1, dim3(32, 64), 0, out, 1.0f), {"no valid block: (32,64,1)"},
                      false) == "");
    CHECK(shortcoming(device, LAUNCH(fill, 1, 32, 166913, out, 1.0f), {"166913 bytes of shared memory"},
                      false) == "");
    CHECK(shortcoming(device, LAUNCH(throws, 1, 32, 0), {"thread (1,0,0): throws no such thing"}, false) ==
          "");
}

TEST_CASE("The emulator finds reads of what has not been written", "[emulator]") {
    Device device;
    float* out = device.out.data();
    const float* in = device.in.data();
    CHECK(shortcoming(
              device, LAUNCH(unwritten_shared, 1, 64, 0, out),
              {"kernel unwritten_shared, block (0,0,0), thread (40,0,0): reads unwritten shared memory: byte "
               "160 of row, which has 256"}) == "");
    CHECK(shortcoming(device, LAUNCH(shared_of_another_block, 3, 32, 0, out),
                      {"thread (3,0,0): reads unwritten shared memory: byte 0 of value"}) == "");
    CHECK(shortcoming(device, LAUNCH(missing_wait, 1, 32, 512, out, in),
                      {"thread (0,0,0): reads shared memory whose cp_async_16 has not been waited for"}) ==
          "");
    CHECK(shortcoming(
              device, LAUNCH(waits_for_too_few, 1, 32, 1024, out, in),
              {"thread (0,0,0): reads shared memory whose cp_async_16 has not been waited for: byte 512"}) ==
          "");
    CHECK(shortcoming(
              device, LAUNCH(overwrites_a_copy, 1, 32, 512, in),
              {"thread (0,0,0): writes shared memory whose cp_async_16 has not been waited for: byte 0"}) ==
          "");

    // Unchecked, the same reads give NaN.
    emulator::Settings unchecked;
    unchecked.checked = false;
    const emulator::SettingsScope scope(unchecked);
    CU_LAUNCH(missing_wait, 1, 32, 512, device.runtime.stream(), out, in);
    CHECK(std::isnan(device.out.read()[0]));
}

TEST_CASE("The emulator finds races", "[emulator]") {
    Device device;
    float* out = device.out.data();
    const float* in = device.in.data();
    const DeviceArray<bfloat16> halves(device.runtime, 64);
    for (uint64_t seed : {0, 1, 2, 3}) {
        emulator::Settings settings = races();
        settings.schedule_seed = seed;
        const emulator::SettingsScope scope(settings);
        INFO("seed " << seed);
        const auto natural = [&](std::vector<std::string> parts) {
            return seed == 0 ? parts : std::vector<std::string>{};
        };
        CHECK(shortcoming(device, LAUNCH(missing_barrier, 2, 64, 0, out), {"kernel missing_barrier"}) == "");
        CHECK(shortcoming(
                  device, LAUNCH(missing_barrier_before_overwriting, 1, 64, 0, out),
                  natural({"thread (1,0,0): race: reads byte 0 of row, which has 256, which thread (0,0,0) "
                           "wrote at "})) == "");
        CHECK(shortcoming(device, LAUNCH(warp_sync_for_a_block, 1, 64, 0, out), {"race"}) == "");
        CHECK(shortcoming(
                  device, LAUNCH(missing_warp_sync, 1, 32, 0, out),
                  natural({"thread (31,0,0): race: reads byte 0 of row, which has 128, which thread (0,0,0) "
                           "wrote at "})) == "");
        CHECK(shortcoming(device, LAUNCH(copy_without_barrier, 1, 32, 512, out, in),
                          {"kernel copy_without_barrier"}) == "");
        CHECK(shortcoming(device, LAUNCH(two_writers, 1, 32, 0, halves.data()),
                          natural({"thread (1,0,0): race: writes global memory at 0x",
                                   "thread (0,0,0) wrote at "})) == "");
        CHECK(shortcoming(
                  device, LAUNCH(race_between_blocks, 3, 32, 0, out),
                  natural({"kernel race_between_blocks, block (1,0,0), thread (5,0,0): race: writes global "
                           "memory at 0x",
                           "which thread (5,0,0) of block (0,0,0) wrote at "})) == "");
        CHECK(shortcoming(device, LAUNCH(reads_what_another_block_writes, 3, 32, 0, out),
                          natural({"block (2,0,0), thread (4,0,0): race: writes global memory",
                                   "of block (1,0,0) "
                                   "read at "})) == "");
    }
}

TEST_CASE("An error in a graph comes from its launch", "[emulator]") {
    Device device;
    const auto graph = device.runtime.record([&] {
        CU_LAUNCH(fill, 1, 32, 0, device.runtime.stream(), device.out.data(), 4.0f);
        CU_LAUNCH(beyond_the_end, 2, 256, 0, device.runtime.stream(), device.out.data(), 256);
    });
    CHECK(shortcoming(device, [&] { device.runtime.launch(*graph); },
                      {"kernel beyond_the_end, block (1,0,0), thread (0,0,0)"}) == "");
}
