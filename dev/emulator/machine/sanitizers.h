// What address and thread sanitizers must be told about fibers. Nothing in other builds.
//
// To the thread sanitizer every CUDA thread is a thread of its own, and the emulator does not exist: its own
// accesses are hidden, and only barriers order the kernels' accesses.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define TRAIN_QAT_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define TRAIN_QAT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TRAIN_QAT_ASAN 1
#elif __has_feature(thread_sanitizer)
#define TRAIN_QAT_TSAN 1
#endif
#endif

#if defined(TRAIN_QAT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(TRAIN_QAT_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace train_qat::emulator {

#if defined(TRAIN_QAT_TSAN)

// For the emulator's own small functions, instead of a Hidden.
#define TRAIN_QAT_NOT_SEEN __attribute__((no_sanitize("thread")))

constexpr bool one_fiber_per_thread = true;

inline void hide_accesses() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
inline void show_accesses() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

// While it lives, the running fiber's accesses are hidden.
class Hidden {
  public:
    Hidden() { hide_accesses(); }
    ~Hidden() { show_accesses(); }
    Hidden(const Hidden&) = delete;
    Hidden& operator=(const Hidden&) = delete;
};

// What happened before release_to happens before what follows acquire_from of the same token.
inline void release_to(void* token) {
    __tsan_release(token);
}
inline void acquire_from(void* token) {
    __tsan_acquire(token);
}

#else

#define TRAIN_QAT_NOT_SEEN

constexpr bool one_fiber_per_thread = false;

class Hidden {
  public:
    Hidden() {}
};
inline void release_to(void*) {}
inline void acquire_from(void*) {}

#endif

inline void poison_memory([[maybe_unused]] const void* memory, [[maybe_unused]] long bytes) {
#if defined(TRAIN_QAT_ASAN)
    __asan_poison_memory_region(memory, static_cast<unsigned long>(bytes));
#endif
}
inline void unpoison_memory([[maybe_unused]] const void* memory, [[maybe_unused]] long bytes) {
#if defined(TRAIN_QAT_ASAN)
    __asan_unpoison_memory_region(memory, static_cast<unsigned long>(bytes));
#endif
}

}  // namespace train_qat::emulator
