// Bulk copies of the running block, by tensor maps and of consecutive bytes. Loads land as late as they may or, with a
// seed, at random times and in random order; until then their destination is NaN and closed to everyone. What a store
// reads is closed to writers until the storing thread has waited, and global memory changes as late as it may.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "dev/emulator/barriers.h"
#include "dev/emulator/machine/tensor_map.h"
#include "dev/emulator/machine/warp.h"

namespace train_qat::emulator {

class BulkCopies {
  public:
    void start_block(Block& block, uint32_t threads);

    // ---- of the running thread; each fails the launch when something is wrong
    void load_tensor(void* shared, const TensorMap& map, int rank, const std::array<int, 3>& at,
                     const void* barrier, const Location& location);
    void load(void* shared, const void* global, int64_t bytes, const void* barrier, const Location& location);
    // add: to float32 numbers in global memory, one at a time and in no order.
    void store_tensor(const TensorMap& map, int rank, const std::array<int, 3>& at, const void* shared,
                      bool add, const Location& location);
    void close_group();
    // Until at most `pending` of the thread's newest groups have not been read, or not been written too.
    void wait(int pending, bool written);
    void thread_ends(const Location& location);

    // ---- of the scheduler
    bool land_one();    // false: nothing is under way
    void maybe_land();  // with a seed, now and then
    void block_ends();

    std::string user_of(int64_t offset, int64_t bytes) const;

  private:
    struct Load {
        int64_t offset, bytes;
        TensorMap map;  // rank 0: consecutive bytes
        std::array<int, 3> at;
        const unsigned char* global;  // those
        Barriers::Ticket ticket;
        uint32_t thread;
        Location location;
    };
    struct Store {
        int64_t offset, bytes;
        TensorMap map;
        std::array<int, 3> at;
        bool add, reading;
        int group;
        Location location;
        std::vector<unsigned char> content;  // of the box, rows one after another
    };
    struct Stores {
        std::vector<Store> open;
        int closed_groups = 0;
    };
    void check_map(const TensorMap& map, int rank, const Location& location) const;
    void check_destination(const void* shared, int64_t bytes, int64_t alignment, const char* what,
                           const Location& location) const;
    void start(Load load, void* shared);
    void land(Load load);
    std::vector<unsigned char> read_box(const TensorMap& map, const unsigned char* shared) const;
    static void write(const Store& store);
    void release(Store& store);

    Block* block_ = nullptr;
    std::vector<Load> loads_;
    std::vector<Stores> stores_;  // by thread
};

}  // namespace train_qat::emulator
