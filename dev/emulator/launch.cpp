#include "dev/emulator/launch.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <numeric>

#include "dev/emulator/block.h"
#include "dev/emulator/machine/sanitizers.h"

namespace train_qat::emulator {

namespace {

Settings current_settings;

Block& block_of_this_thread() {
    thread_local const std::unique_ptr<Block> block = std::make_unique<Block>();
    return *block;
}

[[noreturn]] void refuse(const Launch& launch, const std::string& text) {
    throw LaunchError("kernel " + launch.kernel + ": " + text + " (" + launch.where.file_name() + ":" +
                      std::to_string(launch.where.line()) + ")");
}

void check_configuration(const Launch& launch) {
    const dim3 &grid = launch.grid, &block = launch.block;
    const auto text = [](const dim3& d) {
        return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
    };
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        refuse(launch, "no valid grid: " + text(grid));
    if (launch.threads() == 0 || launch.threads() > 1024 || block.z > 64)
        refuse(launch, "no valid block: " + text(block));
    const int64_t limit = shared_memory_limit_of(current_settings.compute_capability);
    if (launch.shared_bytes < 0 || launch.shared_bytes > limit)
        refuse(launch, std::to_string(launch.shared_bytes) +
                           " bytes of shared memory asked, a block can have " + std::to_string(limit));
}

// Runs a launch's blocks on all threads; remembers the first block that failed.
class BlockQueue {
  public:
    // report: null, or where to add what was recorded.
    BlockQueue(const Launch& launch, const Settings& settings, LaunchReport* report)
        : launch_(launch), settings_(settings), report_(report), count_(launch.blocks()) {
        if (settings.schedule_seed == 0) return;
        // i -> i * stride + offset mod count visits every block once.
        uint64_t mixed = settings.schedule_seed * 0x9e3779b97f4a7c15u;
        mixed ^= mixed >> 29;
        offset_ = static_cast<int64_t>(mixed % static_cast<uint64_t>(count_));
        stride_ = 1 + static_cast<int64_t>((mixed >> 32) % static_cast<uint64_t>(count_));
        while (std::gcd(stride_, count_) != 1) ++stride_;
    }

    void work() {
        Block& block = block_of_this_thread();
        AccessLog log;
        int64_t shared_bytes = 0;
        for (;;) {
            const int64_t turn = next_.fetch_add(1, std::memory_order_relaxed);
            if (turn >= count_ || failed_.load(std::memory_order_relaxed)) break;
            const int64_t number = (turn * stride_ + offset_) % count_;
            const std::string error =
                block.run(launch_, settings_, number, report_ != nullptr ? &log : nullptr);
            shared_bytes = std::max(shared_bytes, block.shared_bytes());
            if (error.empty()) continue;
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!failed_ || turn < failed_turn_) {
                error_ = error;
                failed_turn_ = turn;
            }
            failed_ = true;
        }
        if (report_ == nullptr) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        log.report(*report_);
        report_->shared_bytes = std::max(report_->shared_bytes, shared_bytes);
    }

    // Few threads are not worth the others' wake-up.
    int threads() const {
        constexpr int64_t worth_it = 2048;
        if (one_fiber_per_thread || settings_.check_races || count_ * launch_.threads() < worth_it) return 1;
        const int wanted = settings_.threads > 0 ? settings_.threads : omp_get_max_threads();
        return static_cast<int>(std::min<int64_t>(wanted, count_));
    }

    void finish() const {
        if (failed_) throw LaunchError(error_);
    }

  private:
    const Launch& launch_;
    const Settings& settings_;
    LaunchReport* const report_;
    const int64_t count_;
    int64_t stride_ = 1, offset_ = 0;
    std::atomic<int64_t> next_{0};
    std::atomic<bool> failed_{false};
    std::mutex mutex_;
    std::string error_;
    int64_t failed_turn_ = 0;
};

}  // namespace

const Settings& settings() {
    return current_settings;
}

SettingsScope::SettingsScope(const Settings& settings) : previous_(current_settings) {
    current_settings = settings;
}

SettingsScope::~SettingsScope() {
    current_settings = previous_;
}

void run(const Launch& launch) {
    check_configuration(launch);
    // Looking for races has one clock for the process.
    static std::mutex race_mutex;
    std::unique_lock<std::mutex> race_lock(race_mutex, std::defer_lock);
    if (current_settings.check_races) {
        race_lock.lock();
        Observer::start_launch();
    }
    LaunchReport report;
    Recorder* const recorder = Recorder::active();
    BlockQueue queue(launch, current_settings, recorder != nullptr ? &report : nullptr);
    const int threads = queue.threads();
    release_to(&launch.started);
    if (threads == 1) {
        queue.work();
    } else {
#pragma omp parallel num_threads(threads)
        queue.work();
    }
    acquire_from(&launch.finished);
    queue.finish();
    if (recorder == nullptr) return;
    report.kernel = launch.kernel;
    report.file = launch.where.file_name();
    report.line = static_cast<int>(launch.where.line());
    report.grid = launch.grid;
    report.block = launch.block;
    recorder->add(std::move(report));
}

}  // namespace train_qat::emulator
