// What kernels do with packed registers, on the emulated device: bytes, pairs of bfloat16, matrices across a warp.
#include <cstdint>
#include <random>
#include <vector>

#include "test/emulator/emulator_fixture.h"

using namespace train_qat;
using namespace train_qat::CU_BACKEND;
using train_qat::test::DeviceArray;

namespace {

// 32 registers in, one matrix.
__global__ void transpose_kernel(uint32_t* registers) {
    const int lane = lane_index();
    store(registers + lane, transpose_8x8(load(registers + lane)));
}

// The same through ldmatrix.
__global__ void reload_kernel(uint32_t* registers) {
    CU_SHARED(rows, Vector<uint32_t, 4>[8]);
    const int lane = lane_index();
    store_shared(reinterpret_cast<uint32_t*>(rows) + lane, load(registers + lane));
    warp_sync();
    uint32_t matrices[4];
    ldmatrix_x4_trans(matrices, rows + lane % 8);
    store(registers + lane, matrices[0]);
}

std::vector<uint32_t> random_words(size_t count, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<uint32_t> words(count);
    for (uint32_t& word : words) word = static_cast<uint32_t>(random());
    return words;
}

}  // namespace

TEST_CASE("transpose_8x8 gives what ldmatrix_x4_trans loads", "[emulator]") {
    const uint64_t seed = std::random_device{}();
    INFO("words from " << seed);
    Runtime runtime(0);
    const std::vector<uint32_t> words = random_words(32, seed);
    const DeviceArray<uint32_t> transposed(runtime, words), reloaded(runtime, words);
    CU_LAUNCH(transpose_kernel, 1, 32, 0, runtime.stream(), transposed.data());
    CU_LAUNCH(reload_kernel, 1, 32, 0, runtime.stream(), reloaded.data());
    CHECK(transposed.read() == reloaded.read());
    CHECK(transposed.read() != words);
}

TEST_CASE("permute_bytes picks bytes of two words", "[emulator]") {
    const uint64_t seed = std::random_device{}();
    INFO("words from " << seed);
    for (int i = 0; i < 100; ++i) {
        const std::vector<uint32_t> words = random_words(3, seed + static_cast<uint64_t>(i));
        const uint32_t selector = words[2] & 0x7777, result = permute_bytes(words[0], words[1], selector);
        for (int byte = 0; byte < 4; ++byte) {
            const uint32_t from = selector >> 4 * byte & 0xf, word = words[from / 4];
            REQUIRE((result >> 8 * byte & 0xff) == (word >> from % 4 * 8 & 0xff));
        }
    }
}

TEST_CASE("fma_bfloat16 multiplies and adds the halves apart", "[emulator]") {
    std::mt19937_64 random(std::random_device{}());
    const auto number = [&] { return static_cast<float>(static_cast<int>(random() % 17) - 8); };
    for (int i = 0; i < 100; ++i) {
        const float a[2] = {number(), number()}, b[2] = {number(), number()}, c[2] = {number(), number()};
        const uint32_t result =
            fma_bfloat16(pack_bfloat16(a[0], a[1]), pack_bfloat16(b[0], b[1]), pack_bfloat16(c[0], c[1]));
        REQUIRE(low_bfloat16(result) == a[0] * b[0] + c[0]);
        REQUIRE(high_bfloat16(result) == a[1] * b[1] + c[1]);
    }
}
