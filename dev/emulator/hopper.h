// What a block of an H100 has besides an A100's: barriers, bulk copies, products by warpgroups, and the asynchronous
// proxy that the latter two read and write shared memory through.
#pragma once

#include <cstdint>
#include <string>

#include "dev/emulator/barriers.h"
#include "dev/emulator/bulk_copies.h"
#include "dev/emulator/warpgroups.h"

namespace train_qat::emulator {

struct Hopper {
    Barriers barriers;
    NamedBarriers named;
    BulkCopies copies;
    Warpgroups warpgroups;

    void start_block(Block& block, uint32_t threads) {
        barriers.start_block(block);
        named.start_block(block);
        copies.start_block(block, threads);
        warpgroups.start_block(block, threads);
    }
    // What uses bytes of shared memory, for messages; "": nothing.
    std::string user_of(int64_t offset, int64_t bytes) const {
        const std::string copy = copies.user_of(offset, bytes);
        return copy.empty() ? warpgroups.user_of(offset, bytes) : copy;
    }
};

}  // namespace train_qat::emulator
