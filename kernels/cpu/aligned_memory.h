// Memory that grows to what was asked for and is kept: after the first step nothing is allocated.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace train_qat {

class AlignedMemory {
  public:
    // At least `count` floats, on a page of their own; what they held before is lost when they grow.
    float* at_least(int64_t count) {
        const int64_t needed = (count * static_cast<int64_t>(sizeof(float)) + page - 1) / page * page;
        if (needed > bytes_) {
            memory_.reset();
            memory_.reset(static_cast<float*>(std::aligned_alloc(page, static_cast<size_t>(needed))));
            bytes_ = needed;
            // No exception may leave a parallel region.
            if (memory_ == nullptr)
                std::fprintf(stderr, "train_qat: error: out of memory for scratch\n"), std::abort();
        }
        return memory_.get();
    }

  private:
    static constexpr int64_t page = 4096;
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> memory_;
    int64_t bytes_ = 0;
};

}  // namespace train_qat
