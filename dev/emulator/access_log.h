// Records what the blocks of one OS thread do to the memory system: groups the accesses of a warp's lanes
// into requests and counts sectors and wavefronts.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "dev/emulator/emulator.h"
#include "dev/emulator/machine/warp.h"

namespace train_qat::emulator {

enum class Traffic : uint8_t { load, store, shared, ldmatrix };

class AccessLog {
  public:
    void start_block(int64_t warps);
    // `address`: in global memory, or an offset in shared memory. At most 16 bytes count as one access.
    void add(Traffic traffic, uint32_t warp, uint32_t lane, uint64_t address, int64_t bytes,
             const Location& location);
    void add_bytes(Access access, int64_t bytes, const Location& location) {
        (access == Access::load ? at(location).bytes_loaded : at(location).bytes_stored) += bytes;
    }
    void add_flops(int64_t flops, const Location& location) { at(location).tensor_core_flops += flops; }
    // The warp's lanes have met or have all returned: its requests are complete.
    void close(uint32_t warp);

    // Adds everything to the report.
    void report(LaunchReport& report) const;

  private:
    struct Line {
        Location location;
        Counters counters;
    };
    struct Request {
        uint32_t lanes = 0;
        std::array<uint64_t, warp_size> address;
        std::array<uint8_t, warp_size> bytes;
    };
    // One place in the source, for one warp: its requests by how often each lane has been there.
    struct Site {
        Traffic traffic;
        Location location;
        std::array<uint32_t, warp_size> visits{};
        std::vector<Request> requests;
    };
    Counters& at(const Location& location);
    Site& site(uint32_t warp, Traffic traffic, const Location& location);
    static void count(Counters& counters, Traffic traffic, const Request& request);

    std::vector<Line> lines_;  // few: searched from the last hit
    size_t last_line_ = 0;
    std::vector<std::vector<Site>> sites_;  // per warp
};

}  // namespace train_qat::emulator
