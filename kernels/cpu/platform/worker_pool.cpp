#include "kernels/cpu/platform/worker_pool.h"

namespace train_qat {

namespace {

// Turns of a loop that waits before it lets others have the core: some tens of microseconds, longer than what lies between
// two operations.
constexpr int patience = 4000;

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

uint32_t number_of(uint64_t state) {
    return static_cast<uint32_t>(state >> 32);
}

}  // namespace

WorkerPool::WorkerPool(int threads) {
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
    } catch (...) {
        end();
        throw;
    }
}

WorkerPool::~WorkerPool() {
    end();
}

void WorkerPool::end() {
    ended_.store(true);
    state_.store(uint64_t{number_of(state_.load()) + 1} << 32);
    state_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void WorkerPool::run_job(Job job, uint32_t blocks) {
    const uint32_t number = number_of(state_.load(std::memory_order_relaxed)) + 1;
    job_ = job;
    done_.store(0, std::memory_order_relaxed);
    state_.store(uint64_t{number} << 32 | blocks, std::memory_order_release);
    state_.notify_all();
    work(number);
    for (int turns = 0; done_.load(std::memory_order_acquire) != blocks;)
        if (++turns < patience)
            pause_briefly();
        else
            std::this_thread::yield();
}

void WorkerPool::work(uint32_t number) {
    uint64_t state = state_.load(std::memory_order_acquire);
    while (number_of(state) == number && static_cast<uint32_t>(state) > 0) {
        if (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire))
            continue;
        job_.call(job_.context, static_cast<int64_t>(static_cast<uint32_t>(state)) - 1);
        done_.fetch_add(1, std::memory_order_release);
        state = state_.load(std::memory_order_acquire);
    }
}

void WorkerPool::serve() {
    uint32_t served = 0;
    for (int turns = 0; !ended_.load(std::memory_order_relaxed);) {
        const uint64_t state = state_.load(std::memory_order_acquire);
        if (number_of(state) != served) {
            served = number_of(state);
            work(served);
            turns = 0;
        } else if (++turns < patience) {
            pause_briefly();
        } else {
            // With blocks of a job left to take the state is another one; then this returns at once.
            state_.wait(state);
            turns = 0;
        }
    }
}

}  // namespace train_qat
