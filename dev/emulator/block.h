// One running block of a launch: its threads, and who waits for what. Each OS thread has one of these and
// runs block after block in it.
//
// Threads start one after another on the same fiber, as plain calls; only when one has to wait does it keep
// its fiber, and the next goes on with another. A kernel without barriers needs one fiber in all.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dev/emulator/emulator.h"
#include "dev/emulator/launch.h"
#include "dev/emulator/machine/fiber.h"
#include "dev/emulator/machine/schedule.h"
#include "dev/emulator/machine/warp.h"
#include "dev/emulator/observer.h"

namespace train_qat::emulator {

struct Hopper;

// "FILE:LINE"
std::string text_of(const Location& location);
bool same_line(const Location& a, const Location& b);

// What a thread waits for that is not a meeting of its warp or block.
struct Wait {
    enum class Kind : uint8_t { nothing, barrier, named } kind = Kind::nothing;
    int64_t id = 0;  // of the barrier: its offset in shared memory, or its number
    uint32_t parity = 0;
    Location location;
};

class Block {
  public:
    // On this OS thread; null outside of kernels.
    static Block* running();

    Block();
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    // Runs block number `number` of the launch. "" or the error that ended it.
    std::string run(const Launch& launch, const Settings& settings, int64_t number, AccessLog* log);
    int64_t shared_bytes() const { return observer_.shared_bytes(); }

    // ---- what the thread functions ask for, on behalf of the running thread
    bool arrive_at_warp(const char* function, Ordering ordering, const Location& location);
    void release_lanes(Ordering ordering);
    void wait_for_block(const Location& location);
    // The running thread goes on after somebody has called wake for it.
    void suspend(const Wait& wait);
    void wake(uint32_t thread);
    // With a seed, others may go on before the running thread.
    void give_way();
    uint64_t draw(uint64_t below) { return schedule_.draw(below); }
    // The state of an H100's instructions; fails for other devices.
    Hopper& hopper(const Location& location);
    Hopper& hopper() { return *hopper_; }
    // Unwinds the running thread, which ends the block.
    [[noreturn]] void fail(const std::string& text, const Location& location);
    // Ends the block from outside of its threads.
    void end_with(const std::string& error);
    std::string message_of(uint32_t thread, const std::string& text, const Location& location) const;
    Observer& observer() { return observer_; }
    const Settings& settings() const { return *settings_; }
    uint32_t thread_number() const { return current_->number; }
    uint32_t warp_number() const { return current_->number / warp_size; }

    // "(x,y,z)"
    std::string index_of_thread(uint32_t number) const;
    std::string index_of_block(int64_t number) const;

  private:
    struct Failure {
        std::string message;
    };
    struct Thread {
        uint3 index{};
        uint32_t number = 0;
        Fiber* fiber = nullptr;  // null: has not started, or has returned
    };
    // Addresses that stand for barriers before the thread sanitizer. New ones for each block, or barriers
    // would seem to order blocks too.
    struct Tokens {
        char barrier[2], warp[32][2];
    };

    void start(const Launch& launch, const Settings& settings, int64_t number, AccessLog* log);
    void number_threads(const dim3& extent);
    void abandon();
    void make_current(Thread& thread);
    Thread* next_thread();
    Fiber* take_fiber();
    Fiber& fiber_of(Thread& thread);
    void yield();
    static void run_threads(void* block);
    [[noreturn]] void thread_loop();
    void run_kernel();
    void end_thread();
    void end_hopper();
    void complete_barrier();
    std::string deadlock() const;  // deadlock.cpp
    std::string lanes_text(uint32_t lanes) const;
    std::string message(const std::string& text, const Location& location) const;

    const Launch* launch_ = nullptr;
    const Settings* settings_ = nullptr;
    Observer observer_;
    Schedule schedule_;
    dim3 extent_{0, 0, 0};
    std::vector<Thread> threads_;  // of a block of that extent
    std::vector<Warp> warps_;
    std::unique_ptr<Hopper> hopper_;
    bool hopper_used_ = false;  // by this block
    std::vector<Wait> waits_;   // by thread
    Thread* current_ = nullptr;
    std::string error_;

    uint32_t alive_ = 0, at_barrier_ = 0;  // threads
    Location barrier_;                     // where those wait
    uint32_t barriers_ = 0;

    Fiber home_;  // of run's caller
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Fiber*> free_fibers_, used_up_fibers_;
    std::unique_ptr<Tokens> tokens_;
};

}  // namespace train_qat::emulator
