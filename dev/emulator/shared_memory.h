// The shared memory of the running block: its variables, laid out with gaps in between, and for every byte
// what may be done with it.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "dev/emulator/races.h"

namespace train_qat::emulator {

// Of a block on an A100: in all, and declared with CU_SHARED.
constexpr int64_t shared_memory_limit = 163 << 10;
constexpr int64_t static_shared_memory_limit = 48 << 10;

class SharedMemory {
  public:
    enum State : uint8_t { unwritten = 0, written = 1, gap = 2, pending = 4 };  // pending: cp_async_16 runs

    SharedMemory();
    ~SharedMemory();

    // A new block: nothing is declared, and everything is NaN.
    void reset(int64_t dynamic_bytes, bool checked);
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
            return ((states ^ each * written) & mask) == 0;
        });
    }
    bool all_free(int64_t offset, int64_t bytes) const {  // to be written
        return every_state(offset, bytes, [](uint64_t states, uint64_t mask) {
            return (states & each * (gap | pending) & mask) == 0;
        });
    }
    bool all_inside(int64_t offset, int64_t bytes) const {
        return every_state(offset, bytes,
                           [](uint64_t states, uint64_t mask) { return (states & each * gap & mask) == 0; });
    }
    bool any_pending(int64_t offset, int64_t bytes) const {
        return !every_state(offset, bytes, [](uint64_t states, uint64_t mask) {
            return (states & each * pending & mask) == 0;
        });
    }
    void mark(int64_t offset, int64_t bytes, State state) {
        const uint64_t eight = each * state;
        uint8_t* states = states_.data() + offset;
        for (; bytes >= 8; bytes -= 8, states += 8) std::memcpy(states, &eight, 8);
        for (; bytes > 0; --bytes) *states++ = state;
    }

    // Where in which variable, for messages.
    std::string name_of(const void* address) const;
    RaceShadow& shadow();

  private:
    // Exactly as aligned as promised, so that kernels do not get used to better.
    static constexpr int64_t gap_bytes = 128, dynamic_alignment = 16,
                             first_offset = gap_bytes + dynamic_alignment;
    static constexpr int64_t capacity = shared_memory_limit + 64 * gap_bytes;
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
    std::unique_ptr<RaceShadow> shadow_;
    std::vector<Variable> variables_;
    int64_t used_ = 0, dynamic_bytes_ = 0, static_bytes_ = 0;
    bool checked_ = true;
};

}  // namespace train_qat::emulator
