// Control of the emulated CUDA device: how strictly kernels are checked, in which order their threads run,
// and what is counted. For tests and for dev/; kernels know nothing of this.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "dev/emulator/launch.h"

namespace train_qat::emulator {

// What a launch throws when a kernel breaks a rule: one line that names the kernel, block, thread and source
// line. The next launch works again.
class LaunchError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// ---- settings

struct Settings {
    bool checked = true;             // addresses, alignment, extents, unwritten shared memory, cp.async waits
    bool check_races = false;        // conflicting accesses that no barrier orders; blocks run one by one
    uint64_t schedule_seed = 0;      // 0: threads run in their natural order; else in an order made from this
    int compute_capability = 80;     // 90: an H100's instructions and shared memory
    int threads = 0;                 // of the CPU; 0: as many as OpenMP takes
    bool allow_host_memory = false;  // as global memory, besides Runtime::allocate's
    // Accesses of a thread without waiting or returning, before it is taken to wait in a loop; checked only.
    int64_t patience = int64_t{1} << 30;
};

const Settings& settings();

// While it lives, launches run with these settings. Not while a launch runs.
class SettingsScope {
  public:
    explicit SettingsScope(const Settings& settings);
    ~SettingsScope();
    SettingsScope(const SettingsScope&) = delete;
    SettingsScope& operator=(const SettingsScope&) = delete;

  private:
    Settings previous_;
};

// ---- what launches do to the memory system

// A request is what the lanes of one warp access at one place of the source between two meetings of the warp,
// each lane for the same time there. Global memory serves it in sectors of 32 bytes; shared memory in
// wavefronts, each at most one 4-byte word per bank, 32 banks: accesses of 8 bytes go by half warps, of 16
// bytes by quarters. Ideal: the distinct bytes in as few sectors as can hold them, no two words in one bank.
struct Counters {
    int64_t tensor_core_flops = 0;
    int64_t bytes_loaded = 0, bytes_stored = 0;  // global memory, each lane's
    int64_t load_requests = 0, load_sectors = 0, ideal_load_sectors = 0;
    int64_t store_requests = 0, store_sectors = 0, ideal_store_sectors = 0;
    int64_t shared_requests = 0, shared_wavefronts = 0, ideal_shared_wavefronts = 0;
    int64_t ldmatrix_requests = 0, ldmatrix_wavefronts = 0, ideal_ldmatrix_wavefronts = 0;

    Counters& operator+=(const Counters& other);
    int64_t bank_conflicts() const {
        return shared_wavefronts - ideal_shared_wavefronts + ldmatrix_wavefronts - ideal_ldmatrix_wavefronts;
    }
};

struct LaunchReport : Counters {
    std::string kernel, file;  // file and line of CU_LAUNCH
    int line = 0;
    dim3 grid, block;
    int64_t shared_bytes = 0;               // static and dynamic, of one block
    std::map<std::string, Counters> lines;  // by "file:line" of the access
};

// While it lives, launches are recorded, by the innermost Recorder.
class Recorder {
  public:
    Recorder();
    ~Recorder();
    Recorder(const Recorder&) = delete;
    Recorder& operator=(const Recorder&) = delete;

    // In their order. A launch that failed is not among them.
    const std::vector<LaunchReport>& launches() const { return launches_; }
    void clear() { launches_.clear(); }

    static Recorder* active();
    void add(LaunchReport report) { launches_.push_back(std::move(report)); }

  private:
    Recorder* outer_;
    std::vector<LaunchReport> launches_;
};

// A table of kernels, launches of the same kernel together, and one of the source lines that waste most.
std::string markdown(const std::vector<LaunchReport>& launches);

}  // namespace train_qat::emulator
