// Finds races: two threads access the same bytes, at least one writes, and nothing orders the two. What
// orders the threads of a block is block_sync, what orders those of a warp is also warp_sync and ldmatrix;
// blocks of a launch are not ordered.
//
// Barriers are for a whole block or a whole warp, so one clock is enough, advanced at each of them: an access
// of the same block happened before another one if it is older than the block's last barrier, or of the same
// warp and older than the warp's last meeting, or of the same thread. Blocks run one by one while races are
// looked for, so every earlier block of the launch is a stretch of the clock too.
//
// For every 4-byte word the shadow keeps the last write and what must be known of the reads since. Words that
// are accessed in parts are kept by byte.
#pragma once

#include <cstdint>

#include "dev/emulator/machine/warp.h"

namespace train_qat::emulator {

// Of the accesses that now happen.
struct Order {
    uint64_t launch_start = 0, block_start = 0, last_barrier = 0, now = 0;
};

// When, and by whom: time << 16 | thread of the block, or one of the marks below. 0: never.
using Stamp = uint64_t;
constexpr Stamp several_lanes = 0x8000;  // of the warp in the low bits
constexpr Stamp several_warps = 0xffff;
constexpr uint64_t time_of(Stamp stamp) {
    return stamp >> 16;
}
constexpr uint32_t who(Stamp stamp) {
    return stamp & 0xffff;
}

struct Race {
    bool other_wrote = false;
    Stamp other = 0;
    Location other_location;
};

class RaceShadow {
  public:
    explicit RaceShadow(int64_t bytes);
    ~RaceShadow();
    RaceShadow(const RaceShadow&) = delete;
    RaceShadow& operator=(const RaceShadow&) = delete;

    // Bytes [offset, offset + bytes) are accessed by `thread`, whose warp was last ordered at `warp_sync`.
    // True: there is a race, and it is described. `start`: what is older, happened before.
    bool access(int64_t offset, int64_t bytes, Access access, uint32_t thread, uint64_t warp_sync,
                const Order& order, uint64_t start, const Location& location, Race& race);

  private:
    struct Cell;
    struct Accessor;
    Cell* bytes_of(int64_t word, const Accessor& accessor);

    int64_t words_;
    Cell* cells_;  // one per word, then four per word
};

}  // namespace train_qat::emulator
