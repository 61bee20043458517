// The device's global memory: which addresses belong to an allocation.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "dev/emulator/machine/races.h"

namespace train_qat::emulator {

struct Allocation {
    const unsigned char* begin = nullptr;
    int64_t bytes = 0;
    std::unique_ptr<RaceShadow> shadow;  // when races have been looked for

    bool contains(const void* address, int64_t size) const {
        const int64_t offset = static_cast<const unsigned char*>(address) - begin;
        return offset >= 0 && offset + size <= bytes;
    }
};

class GlobalMemory {
  public:
    // Of the process: a pointer is a pointer, whichever Runtime it comes from.
    static GlobalMemory& instance();

    void* allocate(int64_t bytes);  // zero-filled, 256-byte aligned; null without enough memory
    void release(void* memory);
    int64_t allocated_bytes() const { return allocated_bytes_; }

    // The allocation that holds the address, or null. Stays until it is released.
    Allocation* find(const void* address);
    // The last allocation that begins at or below the address, or null. For messages.
    Allocation* below(const void* address);
    // Changes whenever memory is released.
    uint64_t generation() const { return generation_.load(std::memory_order_relaxed); }

  private:
    std::mutex mutex_;
    std::map<const unsigned char*, Allocation> allocations_;
    std::atomic<uint64_t> generation_{1};
    std::atomic<int64_t> allocated_bytes_{0};
};

// Remembers where each place in the source found its allocation last. Of one OS thread.
class AllocationCache {
  public:
    Allocation* find(const void* address, int64_t bytes, const Location& location) {
        GlobalMemory& memory = GlobalMemory::instance();
        if (generation_ != memory.generation()) {
            for (Allocation*& entry : entries_) entry = nullptr;
            generation_ = memory.generation();
        }
        Allocation*& entry = entries_[(location.line() * 8 + location.column()) % size];
        if (entry == nullptr || !entry->contains(address, bytes)) entry = memory.find(address);
        return entry;
    }

  private:
    static constexpr uint32_t size = 256;
    Allocation* entries_[size] = {};
    uint64_t generation_ = 0;
};

}  // namespace train_qat::emulator
