// Fibers: contexts of execution with a stack of their own that hand the processor to each other. One CUDA
// thread that has to wait is one suspended fiber. A switch costs a few nanoseconds.
#pragma once

#include <cstddef>

#include "dev/emulator/machine/sanitizers.h"

namespace train_qat::emulator {

class Fiber {
  public:
    using Entry = void (*)(void*);

    // The context that the constructing thread already runs in.
    Fiber();
    // A stack, on which the first switch calls entry(argument). `number` staggers the stacks, which would
    // otherwise all fall into the same sets of the caches.
    Fiber(int number, Entry entry, void* argument);
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // Forgets what the stack holds: the next switch calls the entry again. Not for the running fiber.
    void restart();
    // Suspends the running fiber `from`; returns when something switches back to it. To be called Hidden
    // (sanitizers.h).
    static void switch_to(Fiber& from, Fiber& to);

    // For the assembly: the first function on a fiber's stack.
    [[noreturn]] static void begin(Fiber* fiber);

  private:
    void finish_switch();

    void* stack_pointer_ = nullptr;
    void* context_ = nullptr;  // what stands for the stack pointer without our assembly
    char* memory_ = nullptr;   // lowest address of the stack, a guard page
    int number_ = 0;
    Entry entry_ = nullptr;
    void* argument_ = nullptr;
    // For sanitizers.
    void* fake_stack_ = nullptr;
    const void* stack_bottom_ = nullptr;
    size_t stack_size_ = 0;
    void* tsan_fiber_ = nullptr;
};

}  // namespace train_qat::emulator
