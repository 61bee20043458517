// Intel's matrix tiles (AMX; Intel's Software Developer's Manual, volume 1, chapter 18): eight registers of 16 rows of
// 64 bytes, and an instruction that adds the product of two tiles of bfloat16 to a tile of float32,
//     sum[m][n] += sum over p < 16 of  left[m][2p] right[p][2n] + left[m][2p+1] right[p][2n+1]:
// left holds 16 rows of 32 numbers, right 16 pairs of rows of 16 columns with the two rows of a pair interleaved.
//
// MatrixTiles executes the instructions. EmulatedMatrixTiles does the same in plain C++: kernels take either as a
// template argument, so that every CPU can test them.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "kernels/tensor.h"

namespace train_qat {

inline constexpr int64_t tile_rows = 16, tile_row_bytes = 64, tile_count = 8;
inline constexpr int64_t tile_columns = 16;  // of float32, or of pairs of bfloat16
inline constexpr int64_t tile_depth = 32;    // bfloat16 numbers of a row of the left operand

// Whether this CPU multiplies tiles of bfloat16. That alone does not let a process use them.
bool cpu_has_matrix_tiles();
// The same, and the operating system lets this process use them: asks for it, once.
bool may_use_matrix_tiles();

#if defined(__x86_64__)

// Inline assembly, as compilers want the number of a tile spelled out, and -mamx to know any. The registers belong to
// the calling thread.
struct MatrixTiles {
    // All eight tiles whole. Whoever else uses tiles in this thread shapes them anew, so: before each use.
    static void configure() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } const shapes;
        static_assert(sizeof shapes == 64);
        asm volatile("ldtilecfg %0" : : "m"(shapes));
    }
    // Threads that hold no tiles are switched faster.
    static void release() { asm volatile("tilerelease"); }

    template <int tile>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(tile));
    }
    // Row r comes from base + r * stride, in bytes.
    template <int tile>
    static void load(const void* base, int64_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(tile) : "memory");
    }
    template <int tile>
    static void store(void* base, int64_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride), "i"(tile) : "memory");
    }
    template <int sum, int left, int right>
    static void multiply_add() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(left), "i"(right));
    }
};

#endif

// Numbers that are not normal count as zero, as in the instruction; sums round after every product, where the
// instruction rounds once per pair.
struct EmulatedMatrixTiles {
    static void configure() { configured() = true; }
    static void release() { configured() = false; }

    template <int tile>
    static void zero() {
        std::memset(registers(tile), 0, tile_rows * tile_row_bytes);
    }
    template <int tile>
    static void load(const void* base, int64_t stride) {
        for (int64_t row = 0; row < tile_rows; ++row)
            std::memcpy(registers(tile) + row * tile_row_bytes, static_cast<const char*>(base) + row * stride,
                        tile_row_bytes);
    }
    template <int tile>
    static void store(void* base, int64_t stride) {
        for (int64_t row = 0; row < tile_rows; ++row)
            std::memcpy(static_cast<char*>(base) + row * stride, registers(tile) + row * tile_row_bytes,
                        tile_row_bytes);
    }
    template <int sum, int left, int right>
    static void multiply_add() {
        static_assert(sum != left && sum != right && left != right);
        for (int64_t m = 0; m < tile_rows; ++m)
            for (int64_t n = 0; n < tile_columns; ++n) {
                float total;
                char* const place = registers(sum) + m * tile_row_bytes + n * 4;
                std::memcpy(&total, place, sizeof total);
                for (int64_t k = 0; k < tile_depth; ++k)
                    total += number(registers(left) + m * tile_row_bytes + k * 2) *
                             number(registers(right) + k / 2 * tile_row_bytes + (2 * n + k % 2) * 2);
                std::memcpy(place, &total, sizeof total);
            }
    }

  private:
    static bool& configured() {
        static thread_local bool is = false;
        return is;
    }
    static char* registers(int tile) {
        static thread_local char memory[tile_count][tile_rows * tile_row_bytes];
        if (!configured()) throw std::logic_error("matrix tiles: used before they were configured");
        return memory[tile];
    }
    static float number(const char* memory) {
        bfloat16 value;
        std::memcpy(&value, memory, sizeof value);
        return (value.bits & 0x7f80) == 0 ? 0.0f : static_cast<float>(value);
    }
};

}  // namespace train_qat
