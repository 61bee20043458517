// In which order the runnable threads of a block go on: always the first by rank, warps first, then lanes.
// Without a seed ranks are indices. With one they are random and change now and then: a thread with a low
// rank is starved for long stretches, which shows missing barriers. Choosing anew at every step would keep
// all threads about equally far, and hide them.
#pragma once

#include <bit>
#include <cstdint>
#include <random>
#include <vector>

#include "dev/emulator/machine/warp.h"

namespace train_qat::emulator {

class Schedule {
  public:
    // All lanes that are alive can run.
    void start(std::vector<Warp>& warps, uint64_t seed, uint64_t block);
    bool seeded() const { return seed_ != 0; }

    void add(uint32_t warp, uint32_t lanes) {
        if (lanes == 0) return;
        (*warps_)[warp].runnable |= seeded() && lanes != all_lanes ? ranks_of(lanes) : lanes;
        runnable_warps_ |= 1u << rank_of_warp_[warp];
    }
    // Number of the next thread, which no longer counts as runnable; -1: none.
    int take() {
        if (runnable_warps_ == 0) return -1;
        const uint32_t w = warp_of_rank_[std::countr_zero(runnable_warps_) & 31];
        Warp& warp = (*warps_)[w];
        const uint32_t lane = lane_of_rank_[std::countr_zero(warp.runnable) & 31];
        warp.runnable &= warp.runnable - 1;
        if (warp.runnable == 0) runnable_warps_ &= runnable_warps_ - 1;
        return static_cast<int>(w * warp_size + lane);
    }
    void maybe_reorder();
    // Below `below`; 0 without a seed.
    uint64_t draw(uint64_t below) { return seeded() ? random_() % below : 0; }

  private:
    uint32_t ranks_of(uint32_t lanes) const;
    void natural_order();
    void random_order();

    std::vector<Warp>* warps_ = nullptr;
    uint64_t seed_ = 0;
    std::mt19937_64 random_;
    uint32_t runnable_warps_ = 0;  // by rank
    uint8_t warp_of_rank_[32], rank_of_warp_[32], lane_of_rank_[32], rank_of_lane_[32];
};

}  // namespace train_qat::emulator
