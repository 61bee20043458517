#include "dev/emulator/machine/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// Elsewhere, and with -DTRAIN_QAT_UCONTEXT, the C library switches; that takes two system calls.
#if defined(__x86_64__) && defined(__ELF__) && !defined(TRAIN_QAT_UCONTEXT)
#define TRAIN_QAT_SWITCH_STACK 1
#else
#include <ucontext.h>
#endif

namespace train_qat::emulator {

namespace {

#if defined(TRAIN_QAT_ASAN) || defined(TRAIN_QAT_TSAN) || !defined(__OPTIMIZE__)
constexpr size_t stack_bytes = 512 << 10;
#else
constexpr size_t stack_bytes = 128 << 10;
#endif
constexpr size_t guard_bytes = 4096;
constexpr size_t cache_line = 64;

// Which running fiber the switch came from, for the fiber that continues.
thread_local Fiber* switched_from = nullptr;

}  // namespace

// ---- the switch

#if defined(TRAIN_QAT_SWITCH_STACK)

// Saves the registers that a called function must preserve, exchanges the stacks, and returns to where the
// other fiber called this. All threads of a warp usually wait at the same place, so the processor predicts
// these returns well.
extern "C" void train_qat_switch_stack(void** save, void* load);
extern "C" void train_qat_begin_fiber();
asm(R"(
.text
.p2align 4
.globl train_qat_switch_stack
.type train_qat_switch_stack, @function
train_qat_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size train_qat_switch_stack, .-train_qat_switch_stack
.globl train_qat_begin_fiber
.type train_qat_begin_fiber, @function
train_qat_begin_fiber:
    .cfi_startproc
    .cfi_undefined rip
    movq %r12, %rdi
    xorl %ebp, %ebp
    callq *%r13
    ud2
    .cfi_endproc
.size train_qat_begin_fiber, .-train_qat_begin_fiber
)");

#else

extern "C" void train_qat_begin_context(unsigned high, unsigned low) {
    Fiber::begin(reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low));
}

#endif

TRAIN_QAT_NOT_SEEN void Fiber::switch_to(Fiber& from, Fiber& to) {
    switched_from = &from;
#if defined(TRAIN_QAT_ASAN)
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_bottom_, to.stack_size_);
#elif defined(TRAIN_QAT_TSAN)
    // A suspended fiber may never go on, and must not end while it is hidden.
    show_accesses();
    __tsan_switch_to_fiber(to.tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(TRAIN_QAT_SWITCH_STACK)
    train_qat_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#else
    swapcontext(static_cast<ucontext_t*>(from.context_), static_cast<ucontext_t*>(to.context_));
#endif
#if defined(TRAIN_QAT_TSAN)
    hide_accesses();
#endif
    from.finish_switch();
}

void Fiber::finish_switch() {
#if defined(TRAIN_QAT_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack_, &switched_from->stack_bottom_, &switched_from->stack_size_);
#endif
}

TRAIN_QAT_NOT_SEEN void Fiber::begin(Fiber* fiber) {
    fiber->finish_switch();
    fiber->entry_(fiber->argument_);
    std::abort();
}

// ---- creation

Fiber::Fiber() {
#if defined(TRAIN_QAT_TSAN)
    tsan_fiber_ = __tsan_get_current_fiber();
#endif
#if !defined(TRAIN_QAT_SWITCH_STACK)
    context_ = new ucontext_t;
#endif
}

Fiber::Fiber(int number, Entry entry, void* argument) : number_(number), entry_(entry), argument_(argument) {
    void* memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, guard_bytes, PROT_NONE);
    memory_ = static_cast<char*>(memory);
    stack_bottom_ = memory_ + guard_bytes;
    stack_size_ = stack_bytes;
#if !defined(TRAIN_QAT_SWITCH_STACK)
    context_ = new ucontext_t;
#endif
    restart();
}

Fiber::~Fiber() {
#if defined(TRAIN_QAT_TSAN)
    if (memory_ != nullptr) __tsan_destroy_fiber(tsan_fiber_);
#endif
#if defined(TRAIN_QAT_ASAN)
    if (memory_ != nullptr) __asan_unpoison_memory_region(memory_ + guard_bytes, stack_bytes);
#endif
    if (memory_ != nullptr) munmap(memory_, guard_bytes + stack_bytes);
#if !defined(TRAIN_QAT_SWITCH_STACK)
    delete static_cast<ucontext_t*>(context_);
#endif
}

TRAIN_QAT_NOT_SEEN void Fiber::restart() {
#if defined(TRAIN_QAT_ASAN)
    __asan_unpoison_memory_region(memory_ + guard_bytes, stack_bytes);
    fake_stack_ = nullptr;
#elif defined(TRAIN_QAT_TSAN)
    if (tsan_fiber_ != nullptr) {
        // What the forgotten calls have done, is done before anything that follows here.
        void* here = __tsan_get_current_fiber();
        __tsan_switch_to_fiber(tsan_fiber_, 0);
        __tsan_switch_to_fiber(here, 0);
        __tsan_destroy_fiber(tsan_fiber_);
    }
    tsan_fiber_ = __tsan_create_fiber(0);
#endif
    constexpr size_t sets = 64, stride = 17;  // an odd stride visits all sets
    const size_t stagger = static_cast<size_t>(number_) * stride % sets * cache_line;
    char* top = memory_ + guard_bytes + stack_bytes - stagger;
#if defined(TRAIN_QAT_SWITCH_STACK)
    // As train_qat_switch_stack leaves a stack: r15, r14, r13, r12, rbx, rbp, return address.
    // At the entry's call instruction the stack pointer is a multiple of 16.
    auto* frame = reinterpret_cast<void**>(top) - 9;
    std::memset(frame, 0, 9 * sizeof *frame);
    frame[2] = reinterpret_cast<void*>(&Fiber::begin);
    frame[3] = this;
    frame[6] = reinterpret_cast<void*>(&train_qat_begin_fiber);
    stack_pointer_ = frame;
#else
    auto* context = static_cast<ucontext_t*>(context_);
    getcontext(context);
    context->uc_stack.ss_sp = memory_ + guard_bytes;
    context->uc_stack.ss_size = static_cast<size_t>(top - memory_) - guard_bytes;
    context->uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(context, reinterpret_cast<void (*)()>(&train_qat_begin_context), 2,
                static_cast<unsigned>(self >> 32), static_cast<unsigned>(self & 0xffffffffu));
#endif
}

}  // namespace train_qat::emulator
