#include "dev/emulator/machine/shared_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "dev/emulator/machine/sanitizers.h"

namespace train_qat::emulator {

namespace {

constexpr int slack = 16;  // behind the states: they are read eight at a time

int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

void SharedMemory::Free::operator()(unsigned char* memory) const {
    std::free(memory);
}

SharedMemory::SharedMemory() : states_(capacity + slack, gap) {
    make_arena();
}

void SharedMemory::make_arena() {
    constexpr int64_t page = 4096;
    arena_.reset();
    void* memory = std::aligned_alloc(page, static_cast<size_t>(round_up(capacity, page)));
    if (memory == nullptr) throw std::bad_alloc();
    arena_.reset(static_cast<unsigned char*>(memory));
    poison_memory(memory, capacity);
}

SharedMemory::~SharedMemory() {
    unpoison_memory(arena_.get(), capacity);
}

void SharedMemory::reset(int64_t dynamic_bytes, bool checked, bool hopper) {
    checked_ = checked;
    hopper_ = hopper && checked;
    limit_ = hopper ? hopper_shared_memory_limit : shared_memory_limit;
    if (hopper_) {
        readers_.assign(capacity / chunk_bytes, 0);
        writers_.assign(capacity, 0);
        fences_.assign(size_t{1} << thread_bits, 1);
    }
    variables_.clear();
    // Before the thread sanitizer, memory of another block is other memory.
    if (one_fiber_per_thread) make_arena();
    if (checked) std::memset(states_.data(), gap, static_cast<size_t>(used_));
    poison_memory(arena_.get(), used_);
    dynamic_bytes_ = dynamic_bytes;
    static_bytes_ = 0;
    used_ = round_up(first_offset + dynamic_bytes, gap_bytes);
    open(first_offset, dynamic_bytes);
}

void SharedMemory::open(int64_t offset, int64_t bytes) {
    unpoison_memory(arena_.get() + offset, bytes);
    constexpr int nan = 0xff;  // in both float types
    if (!checked_) return;
    std::memset(arena_.get() + offset, nan, static_cast<size_t>(bytes));
    std::memset(states_.data() + offset, unwritten, static_cast<size_t>(bytes));
}

unsigned char* SharedMemory::variable(const void* tag, const char* name, int64_t bytes, int64_t alignment) {
    for (const Variable& known : variables_)
        if (known.tag == tag) return arena_.get() + known.offset;
    // A bank is a word: addresses that are no multiple of that would blur what conflicts.
    const int64_t lead = std::max<int64_t>(alignment, 4);
    const int64_t offset = round_up(used_ + gap_bytes, std::max(gap_bytes, 2 * lead)) + lead;
    static_bytes_ = round_up(static_bytes_, alignment) + bytes;
    if (static_bytes_ > static_shared_memory_limit || this->bytes() > limit_ ||
        offset + bytes + gap_bytes > capacity)
        return nullptr;
    used_ = round_up(offset + bytes, gap_bytes);
    open(offset, bytes);
    variables_.push_back({tag, name, offset, bytes});
    return arena_.get() + offset;
}

// ---- Hopper

void SharedMemory::lock(int64_t offset, int64_t bytes) {
    if (!hopper_) return;
    for (int64_t at = offset; at < offset + bytes; at += chunk_bytes)
        if (readers_[static_cast<size_t>(at / chunk_bytes)]++ == 0)
            for (int64_t i = at; i < at + chunk_bytes; ++i) states_[static_cast<size_t>(i)] |= locked;
}

void SharedMemory::unlock(int64_t offset, int64_t bytes) {
    if (!hopper_) return;
    for (int64_t at = offset; at < offset + bytes; at += chunk_bytes)
        if (--readers_[static_cast<size_t>(at / chunk_bytes)] == 0)
            for (int64_t i = at; i < at + chunk_bytes; ++i)
                states_[static_cast<size_t>(i)] &= static_cast<uint8_t>(~locked);
}

void SharedMemory::note_writer(int64_t offset, int64_t bytes, uint32_t thread) {
    if (!hopper_) return;
    std::fill_n(writers_.begin() + offset, bytes, fences_[thread] << thread_bits | thread);
}

void SharedMemory::forget_writers(int64_t offset, int64_t bytes) {
    if (hopper_) std::fill_n(writers_.begin() + offset, bytes, 0u);
}

int SharedMemory::unfenced_writer(int64_t offset, int64_t bytes) const {
    if (!hopper_) return -1;
    for (int64_t i = offset; i < offset + bytes; ++i) {
        const uint32_t writer = writers_[static_cast<size_t>(i)];
        const uint32_t thread = writer & ((1u << thread_bits) - 1);
        if (writer != 0 && writer >> thread_bits == (fences_[thread] & (~0u >> thread_bits)))
            return static_cast<int>(thread);
    }
    return -1;
}

std::string SharedMemory::name_of(const void* address) const {
    const int64_t offset = offset_of(address);
    std::string name = "the dynamic shared memory";
    int64_t begin = first_offset, bytes = dynamic_bytes_;
    for (const Variable& variable : variables_)
        if (variable.offset - gap_bytes <= offset || bytes == 0) {
            name = variable.name;
            begin = variable.offset;
            bytes = variable.bytes;
        }
    return "byte " + std::to_string(offset - begin) + " of " + name + ", which has " + std::to_string(bytes);
}

RaceShadow& SharedMemory::shadow() {
    if (shadow_ == nullptr) shadow_ = std::make_unique<RaceShadow>(capacity);
    return *shadow_;
}

}  // namespace train_qat::emulator
