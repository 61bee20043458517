// What the threads of a block wait for when none of them can go on.
#include <algorithm>
#include <string>
#include <vector>

#include "dev/emulator/block.h"
#include "dev/emulator/hopper.h"

namespace train_qat::emulator {

namespace {

// Threads that wait for the same thing at the same place.
struct Waiters {
    std::string reason;
    Location location;
    uint32_t first = 0, count = 0;
};

}  // namespace

std::string Block::deadlock() const {
    std::vector<Waiters> all;
    for (uint32_t thread = 0; thread < threads_.size(); ++thread) {
        const Warp& warp = warps_[thread / warp_size];
        const uint32_t lane = 1u << thread % warp_size;
        if ((warp.alive & lane) == 0) continue;
        const Wait& wait = waits_[thread];
        Waiters mine{"in block_sync", barrier_, thread, 1};
        if (wait.kind == Wait::Kind::barrier)
            mine = {hopper_->barriers.describe(wait.id, wait.parity), wait.location, thread, 1};
        else if (wait.kind == Wait::Kind::named)
            mine = {hopper_->named.describe(wait.id), wait.location, thread, 1};
        else if ((warp.arrived & lane) != 0)
            mine = {std::string("in ") + warp.function, warp.location, thread, 1};
        const auto same = std::find_if(all.begin(), all.end(), [&](const Waiters& other) {
            return other.reason == mine.reason && same_line(other.location, mine.location);
        });
        if (same == all.end())
            all.push_back(mine);
        else
            ++same->count;
    }
    std::string text = "deadlock: nothing can go on: ";
    for (size_t i = 0; i < all.size(); ++i) {
        if (i > 0) text += "; thread " + index_of_thread(all[i].first);
        if (all[i].count > 1) text += (i > 0 ? " and " : "and ") + std::to_string(all[i].count - 1) + " more";
        text += (i > 0 || all[i].count > 1 ? " " : "") + std::string(all[i].count > 1 ? "wait " : "waits ") +
                all[i].reason;
        if (i > 0) text += " at " + text_of(all[i].location);
    }
    return message_of(all.front().first, text, all.front().location);
}

}  // namespace train_qat::emulator
