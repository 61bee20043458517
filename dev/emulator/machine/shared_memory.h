// The shared memory of the running block: its variables, laid out with gaps in between, and for every byte
// what may be done with it.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "dev/emulator/machine/races.h"

namespace train_qat::emulator {

// Of a block on an A100 and on an H100, in all; and declared with CU_SHARED.
constexpr int64_t shared_memory_limit = 163 << 10;
constexpr int64_t hopper_shared_memory_limit = 227 << 10;
constexpr int64_t static_shared_memory_limit = 48 << 10;
constexpr int64_t shared_memory_limit_of(int compute_capability) {
    return compute_capability >= 90 ? hopper_shared_memory_limit : shared_memory_limit;
}

class SharedMemory {
  public:
    enum State : uint8_t {
        unwritten = 0,
        written = 1,
        gap = 2,
        pending = 4,     // cp_async_16 runs
        landing = 8,     // a bulk copy brings the byte
        barrier = 16,    // of a Barrier
        locked = 32,     // wgmma or a bulk store reads the byte
        unswizzled = 64  // came by a tensor map without swizzle
    };

    SharedMemory();
    ~SharedMemory();

    // A new block: nothing is declared, and everything is NaN. hopper: locks and writers are kept too.
    void reset(int64_t dynamic_bytes, bool checked, bool hopper);
    unsigned char* dynamic() { return arena_.get() + first_offset; }
    // The variable with this tag, which is made at its first mention. Null without room.
    unsigned char* variable(const void* tag, const char* name, int64_t bytes, int64_t alignment);
    int64_t bytes() const { return dynamic_bytes_ + static_bytes_; }  // as a GPU would need

    bool contains(const void* address) const {
        return static_cast<uint64_t>(offset_of(address)) < static_cast<uint64_t>(capacity);
    }
    int64_t offset_of(const void* address) const {
        return static_cast<const unsigned char*>(address) - arena_.get();
    }
    bool all_written(int64_t offset, int64_t bytes) const {
        return every_state(offset, bytes, [](uint64_t states, uint64_t mask) {
            return ((states ^ each * written) & each * (written | gap | pending | landing | barrier) &
                    mask) == 0;
        });
    }
    bool all_free(int64_t offset, int64_t bytes) const {  // to be written
        return every_state(offset, bytes, [](uint64_t states, uint64_t mask) {
            return (states & each * (gap | pending | landing | barrier | locked) & mask) == 0;
        });
    }
    bool all_inside(int64_t offset, int64_t bytes) const {
        return every_state(offset, bytes,
                           [](uint64_t states, uint64_t mask) { return (states & each * gap & mask) == 0; });
    }
    bool any(State state, int64_t offset, int64_t bytes) const {
        return !every_state(offset, bytes, [state](uint64_t states, uint64_t mask) {
            return (states & each * state & mask) == 0;
        });
    }
    void mark(int64_t offset, int64_t bytes, State state) {
        const uint64_t eight = each * state;
        uint8_t* states = states_.data() + offset;
        for (; bytes >= 8; bytes -= 8, states += 8) std::memcpy(states, &eight, 8);
        for (; bytes > 0; --bytes) *states++ = state;
    }

    // ---- what Hopper's asynchronous proxy reads: chunks of 16 bytes, multiples of that
    void lock(int64_t offset, int64_t bytes);
    void unlock(int64_t offset, int64_t bytes);
    // Which thread wrote which byte since its last fence_async_proxy().
    void note_writer(int64_t offset, int64_t bytes, uint32_t thread);
    void forget_writers(int64_t offset, int64_t bytes);
    void fence(uint32_t thread) { ++fences_[thread]; }
    // The thread that wrote one of the bytes with no fence since; -1: none.
    int unfenced_writer(int64_t offset, int64_t bytes) const;

    // Where in which variable, for messages.
    std::string name_of(const void* address) const;
    std::string name_at(int64_t offset) const { return name_of(arena_.get() + offset); }
    unsigned char* at(int64_t offset) { return arena_.get() + offset; }
    RaceShadow& shadow();

  private:
    // Exactly as aligned as promised, so that kernels do not get used to better.
    static constexpr int64_t gap_bytes = 128, dynamic_alignment = 16,
                             first_offset = gap_bytes + dynamic_alignment;
    static constexpr int64_t capacity = hopper_shared_memory_limit + 64 * gap_bytes;
    static constexpr int64_t chunk_bytes = 16;
    static constexpr uint32_t thread_bits = 10;
    struct Free {
        void operator()(unsigned char* memory) const;
    };
    struct Variable {
        const void* tag;
        const char* name;
        int64_t offset, bytes;
    };
    void make_arena();
    void open(int64_t offset, int64_t bytes);

    // Whether fits(states, mask) for the states of all bytes, eight at a time; the mask covers those that
    // count.
    static constexpr uint64_t each = 0x0101010101010101u;
    template <typename Fits>
    bool every_state(int64_t offset, int64_t bytes, Fits fits) const {
        for (; bytes > 0; bytes -= 8, offset += 8) {
            uint64_t eight;
            std::memcpy(&eight, states_.data() + offset, sizeof eight);
            if (!fits(eight, bytes >= 8 ? ~uint64_t{0} : (uint64_t{1} << 8 * bytes) - 1)) return false;
        }
        return true;
    }

    std::unique_ptr<unsigned char[], Free> arena_;
    std::vector<uint8_t> states_;
    std::vector<uint16_t> readers_;  // of each chunk
    std::vector<uint32_t> writers_;  // of each byte: fences of the thread << thread_bits | thread; 0: none
    std::vector<uint32_t> fences_;   // of each thread, from 1
    std::unique_ptr<RaceShadow> shadow_;
    std::vector<Variable> variables_;
    int64_t used_ = 0, dynamic_bytes_ = 0, static_bytes_ = 0, limit_ = shared_memory_limit;
    bool checked_ = true, hopper_ = false;
};

}  // namespace train_qat::emulator
