#include "dev/emulator/machine/schedule.h"

#include <algorithm>
#include <numeric>

namespace train_qat::emulator {

void Schedule::start(std::vector<Warp>& warps, uint64_t seed, uint64_t block) {
    warps_ = &warps;
    seed_ = seed;
    if (seeded()) {
        constexpr uint64_t odd = 0x9e3779b97f4a7c15u;  // spreads neighbouring blocks and seeds
        random_.seed((seed * odd) ^ (block + 1) * odd * odd);
        random_order();
    } else {
        natural_order();
    }
    runnable_warps_ = 0;
    for (uint32_t w = 0; w < warps.size(); ++w) {
        warps[w].runnable = 0;
        add(w, warps[w].alive);
    }
}

void Schedule::natural_order() {
    for (uint8_t* ranks : {warp_of_rank_, rank_of_warp_, lane_of_rank_, rank_of_lane_})
        std::iota(ranks, ranks + 32, uint8_t{0});
}

void Schedule::random_order() {
    natural_order();
    std::shuffle(warp_of_rank_, warp_of_rank_ + warps_->size(), random_);
    std::shuffle(lane_of_rank_, lane_of_rank_ + 32, random_);
    for (uint8_t rank = 0; rank < 32; ++rank) {
        rank_of_lane_[lane_of_rank_[rank]] = rank;
        rank_of_warp_[warp_of_rank_[rank]] = rank;
    }
}

uint32_t Schedule::ranks_of(uint32_t lanes) const {
    uint32_t ranks = 0;
    for (; lanes != 0; lanes &= lanes - 1) ranks |= 1u << rank_of_lane_[std::countr_zero(lanes)];
    return ranks;
}

void Schedule::maybe_reorder() {
    constexpr uint64_t one_in = 16;
    if (!seeded() || random_() % one_in != 0) return;
    std::vector<Warp>& warps = *warps_;
    uint32_t lanes_of_warp[32];
    for (uint32_t w = 0; w < warps.size(); ++w) {
        lanes_of_warp[w] = 0;
        for (uint32_t ranks = warps[w].runnable; ranks != 0; ranks &= ranks - 1)
            lanes_of_warp[w] |= 1u << lane_of_rank_[std::countr_zero(ranks)];
        warps[w].runnable = 0;
    }
    runnable_warps_ = 0;
    random_order();
    for (uint32_t w = 0; w < warps.size(); ++w) add(w, lanes_of_warp[w]);
}

}  // namespace train_qat::emulator
