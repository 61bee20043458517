#include "dev/emulator/machine/races.h"

#include <sys/mman.h>

#include <new>

namespace train_qat::emulator {

namespace {

constexpr int64_t word_bytes = 4;

}  // namespace

// Zeros are an untouched cell.
struct RaceShadow::Cell {
    Stamp write, read;
    Stamp earlier_read;   // of an earlier block of the launch
    uint64_t split_time;  // since when the word is kept by byte
    Location write_location, read_location, earlier_read_location;
};

struct RaceShadow::Accessor {
    uint32_t thread;
    uint64_t warp_sync;
    const Order& order;
    uint64_t start;
    const Location& location;
    Race& race;

    Stamp stamp() const { return order.now << 16 | thread; }
    bool same_warp(Stamp stamp) const {
        const uint32_t other = who(stamp), warp = thread / warp_size;
        return other < several_lanes ? other / warp_size == warp : other == (several_lanes | warp);
    }
    bool after(Stamp stamp) const {
        const uint64_t time = time_of(stamp);
        if (time < start) return true;
        if (time < order.block_start) return false;
        return time < order.last_barrier || who(stamp) == thread || (same_warp(stamp) && time < warp_sync);
    }
    bool found(bool other_wrote, Stamp other, const Location& other_location) const {
        race = {other_wrote, other, other_location};
        return true;
    }

    bool read(Cell& cell) const {
        if (!after(cell.write)) return found(true, cell.write, cell.write_location);
        if (cell.read == stamp()) return false;
        Stamp mine = stamp();
        const uint64_t time = time_of(cell.read);
        if (time >= start && time < order.block_start) {
            cell.earlier_read = cell.read;
            cell.earlier_read_location = cell.read_location;
        } else if (!after(cell.read)) {
            mine =
                order.now << 16 | (same_warp(cell.read) ? several_lanes | thread / warp_size : several_warps);
        }
        cell.read = mine;
        cell.read_location = location;
        return false;
    }

    bool write(Cell& cell) const {
        if (!after(cell.write)) return found(true, cell.write, cell.write_location);
        if (!after(cell.read)) return found(false, cell.read, cell.read_location);
        if (time_of(cell.earlier_read) >= start && cell.earlier_read != 0)
            return found(false, cell.earlier_read, cell.earlier_read_location);
        cell.write = stamp();
        cell.write_location = location;
        cell.read = 0;
        return false;
    }

    bool touch(Cell& cell, Access access) const { return access == Access::load ? read(cell) : write(cell); }
};

// Pages come into being when they are touched.
RaceShadow::RaceShadow(int64_t bytes) : words_(bytes / word_bytes + 2) {
    void* memory = mmap(nullptr, static_cast<size_t>(words_) * (1 + word_bytes) * sizeof(Cell),
                        PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    cells_ = static_cast<Cell*>(memory);
}

RaceShadow::~RaceShadow() {
    munmap(cells_, static_cast<size_t>(words_) * (1 + word_bytes) * sizeof(Cell));
}

// The four byte cells of a word that is kept by byte from now on.
RaceShadow::Cell* RaceShadow::bytes_of(int64_t word, const Accessor& accessor) {
    Cell& cell = cells_[word];
    Cell* bytes = cells_ + words_ + word * word_bytes;
    if (cell.split_time < accessor.start || cell.split_time == 0) {
        for (int64_t i = 0; i < word_bytes; ++i) bytes[i] = cell;
        cell.split_time = accessor.order.now;
    }
    return bytes;
}

bool RaceShadow::access(int64_t offset, int64_t bytes, Access access, uint32_t thread, uint64_t warp_sync,
                        const Order& order, uint64_t start, const Location& location, Race& race) {
    const Accessor accessor{thread, warp_sync, order, start, location, race};
    const int64_t end = offset + bytes;
    while (offset < end) {
        const int64_t word = offset / word_bytes, first = offset % word_bytes;
        const int64_t last = end - word * word_bytes < word_bytes ? end - word * word_bytes : word_bytes;
        Cell& cell = cells_[word];
        const bool split = cell.split_time >= start && cell.split_time != 0;
        if (!split && first == 0 && last == word_bytes) {
            if (accessor.touch(cell, access)) return true;
        } else {
            Cell* parts = bytes_of(word, accessor);
            for (int64_t i = first; i < last; ++i)
                if (accessor.touch(parts[i], access)) return true;
        }
        offset = (word + 1) * word_bytes;
    }
    return false;
}

}  // namespace train_qat::emulator
