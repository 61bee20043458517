// Products by warpgroups (wgmma). Each warp computes its 16 rows when its lanes meet; the sums reach the kernel's
// registers when they are waited for, and until then hold a NaN of their own that is found when it is used.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "dev/emulator/machine/warp.h"
#include "dev/emulator/operations.h"

namespace train_qat::emulator {

class Block;

class Warpgroups {
  public:
    void start_block(Block& block, uint32_t threads);

    // ---- of the running thread; each fails the launch when something is wrong
    void fence();
    void multiply(float* sums, const Product& product, const Location& location);
    void commit(const Location& location);
    void wait(int pending, const Location& location);
    void thread_ends(const Location& location);

    // At the end of a block: "" or which product not all warps of a warpgroup have issued.
    std::string left_over(Location& location) const;
    std::string user_of(int64_t offset, int64_t bytes) const;

  private:
    struct Sums {
        float* registers;
        std::vector<float> values;
        uint64_t group;  // the newest that adds to them
        Location location;
    };
    struct Operand {
        const uint32_t* registers;
        uint32_t values[4];
        uint64_t group;
        Location location;
    };
    struct Lane {
        bool fenced = false;
        std::vector<Sums> sums;
        std::vector<Operand> operands;
    };
    struct Group {
        std::vector<int64_t> chunks;  // of shared memory that it reads
        Location location;
    };
    struct WarpState {
        uint64_t committed = 0, issued = 0;
        Product product{};
        Group open;
        std::deque<Group> groups;
    };
    // What the warps of a warpgroup have issued, from the slowest warp's next product on.
    struct Issues {
        uint64_t first = 0;
        std::deque<std::pair<Product, Location>> products;
    };
    Sums& sums_of(Lane& lane, float* registers, const Product& product, const Location& location);
    void check_same(const Product& product, const Product& other, const char* whose,
                    const Location& location) const;
    void follow_warpgroup(WarpState& warp, const Location& location);
    void compute(WarpState& warp, const Location& location);
    void read_matrix(uint64_t descriptor, bool transposed, int first, int count, float* out, int row_stride,
                     int k_stride, const Location& location);
    const uint16_t* chunk(int64_t address, const Location& location);
    void add_product(std::vector<float>& values) const;
    void settle(Lane& lane, uint64_t retired, const Location& location);

    Block* block_ = nullptr;
    std::vector<Lane> lanes_;  // by thread
    std::vector<WarpState> warps_;
    std::vector<Issues> issues_;  // by warpgroup
};

}  // namespace train_qat::emulator
