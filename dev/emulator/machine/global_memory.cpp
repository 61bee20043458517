#include "dev/emulator/machine/global_memory.h"

#include <cstdlib>
#include <cstring>
#include <iterator>

#include "dev/emulator/machine/sanitizers.h"

namespace train_qat::emulator {

GlobalMemory& GlobalMemory::instance() {
    // Never destroyed: backends with static storage release their memory late.
    static auto* const memory = new GlobalMemory;
    return *memory;
}

void* GlobalMemory::allocate(int64_t bytes) {
    // The gap keeps what runs past the end out of the next allocation.
    constexpr int64_t alignment = 256, gap = 4096;
    const int64_t rounded = (bytes + gap + alignment - 1) / alignment * alignment;
    auto* memory = static_cast<unsigned char*>(std::aligned_alloc(alignment, static_cast<size_t>(rounded)));
    if (memory == nullptr) return nullptr;
    std::memset(memory, 0, static_cast<size_t>(bytes));
    poison_memory(memory + bytes, rounded - bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    Allocation& allocation = allocations_[memory];
    allocation.begin = memory;
    allocation.bytes = bytes;
    allocated_bytes_ += bytes;
    return memory;
}

void GlobalMemory::release(void* memory) {
    if (memory == nullptr) return;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = allocations_.find(static_cast<unsigned char*>(memory));
        if (found == allocations_.end()) return;
        allocated_bytes_ -= found->second.bytes;
        allocations_.erase(found);
        ++generation_;
    }
    std::free(memory);
}

Allocation* GlobalMemory::below(const void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto next = allocations_.upper_bound(static_cast<const unsigned char*>(address));
    return next == allocations_.begin() ? nullptr : &std::prev(next)->second;
}

Allocation* GlobalMemory::find(const void* address) {
    Allocation* candidate = below(address);
    return candidate != nullptr && candidate->contains(address, 1) ? candidate : nullptr;
}

}  // namespace train_qat::emulator
