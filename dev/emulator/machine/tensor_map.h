// The emulator's tensor map: what a tensor looks like in global memory, and the box of it that one bulk copy moves
// between there and shared memory.
#pragma once

#include <array>
#include <cstdint>

namespace train_qat::emulator {

// As large as CUtensorMap. Innermost dimension first.
struct TensorMap {
    static constexpr uint64_t right_mark = 0x7465'6e73'6f72'6d61;
    uint64_t mark = 0;
    unsigned char* address = nullptr;
    int64_t extent[3] = {1, 1, 1};
    int64_t pitch[2] = {0, 0};  // bytes from one to the next in dimension 1 and 2
    int32_t box[3] = {1, 1, 1};
    int32_t rank = 0;
    int32_t element_bytes = 0;
    int32_t float32 = 0;  // 1: its elements can be added
    int32_t swizzled = 0;
    int32_t unused[11] = {};

    int64_t row_bytes() const { return int64_t{box[0]} * element_bytes; }
    int64_t box_bytes() const { return row_bytes() * box[1] * box[2]; }
};
static_assert(sizeof(TensorMap) == 128);

// Chunk `offset / 16` of rows of 128 bytes in shared memory lies at this offset: bits 4-6 are changed by bits 7-9.
constexpr int64_t swizzled_128(int64_t offset) {
    return offset ^ (offset >> 7 & 7) << 4;
}

// Visits the rows of the box whose first element is `at`, in their order in shared memory:
// visit(offset of the row in the box, its first byte inside of the tensor or null, bytes before that, bytes inside).
// What is outside of the tensor is zero when loaded and not stored.
template <typename Visit>
void for_each_row(const TensorMap& map, const std::array<int, 3>& at, Visit visit) {
    int64_t offset = 0;
    for (int64_t z = at[2]; z < at[2] + map.box[2]; ++z)
        for (int64_t y = at[1]; y < at[1] + map.box[1]; ++y, offset += map.row_bytes()) {
            const int64_t first = at[0] > 0 ? at[0] : 0;
            const int64_t wanted = int64_t{at[0]} + map.box[0];
            const int64_t end = wanted < map.extent[0] ? wanted : map.extent[0];
            const bool inside = y >= 0 && y < map.extent[1] && z >= 0 && z < map.extent[2] && first < end;
            unsigned char* const row =
                map.address + z * map.pitch[1] + y * map.pitch[0] + first * map.element_bytes;
            visit(offset, inside ? row : nullptr, (first - at[0]) * map.element_bytes,
                  inside ? (end - first) * map.element_bytes : int64_t{0});
        }
}

// Copies `bytes` bytes between the box in shared memory, whose byte `offset` they begin at, and consecutive memory:
// move(address in the box, bytes moved so far, bytes of this piece).
template <typename Move>
void for_each_piece(const TensorMap& map, int64_t offset, int64_t bytes, Move move) {
    constexpr int64_t chunk = 16;
    for (int64_t done = 0; done < bytes;) {
        const int64_t at = offset + done, rest = chunk - at % chunk;
        const int64_t piece = rest < bytes - done ? rest : bytes - done;
        move(map.swizzled != 0 ? swizzled_128(at) : at, done, piece);
        done += piece;
    }
}

}  // namespace train_qat::emulator
