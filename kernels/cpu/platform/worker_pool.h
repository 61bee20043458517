// Threads for work of some microseconds, again and again. OpenMP's threads meet at the end of each parallel region, all of
// them, so that one that has lost its core to another program holds up everything. Here blocks of work go to whoever takes
// them: the caller works too and waits for blocks that were taken, not for threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace train_qat {

class WorkerPool {
  public:
    // `threads` in all: the caller of run() is one of them.
    explicit WorkerPool(int threads);
    ~WorkerPool();
    WorkerPool(const WorkerPool&) = delete;
    WorkerPool& operator=(const WorkerPool&) = delete;

    // Calls function(block) for every block of [0, blocks), each once, on any thread, and returns when all are done. One
    // caller at a time; the function throws nothing.
    template <typename Function>
    void run(int64_t blocks, Function&& function) {
        if (blocks <= 1 || workers_.empty()) {
            for (int64_t block = 0; block < blocks; ++block) function(block);
            return;
        }
        const auto call = [](const void* context, int64_t block) {
            (*static_cast<const std::remove_reference_t<Function>*>(context))(block);
        };
        run_job({call, &function}, static_cast<uint32_t>(blocks));
    }

  private:
    struct Job {
        void (*call)(const void* context, int64_t block) = nullptr;
        const void* context = nullptr;
    };
    void run_job(Job job, uint32_t blocks);
    // Takes and does blocks of the job of this number until none is left.
    void work(uint32_t number);
    void serve();
    void end();

    std::vector<std::thread> workers_;
    Job job_;  // read by who has taken a block of it: it does not change before that block is done
    // The number of the present job in the upper half, and in the lower half how many of its blocks nobody has taken yet.
    std::atomic<uint64_t> state_{0};
    std::atomic<uint32_t> done_{0};
    std::atomic<bool> ended_{false};
};

}  // namespace train_qat
