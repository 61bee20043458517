// Where the time of operations goes: seconds, FLOPs and bytes, summed by operation.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>

#include "kernels/backend.h"

namespace train_qat {

class Profiler final : public OperationObserver {
  public:
    struct Entry {
        double seconds = 0;
        OperationCost cost;
        int64_t calls = 0;
    };

    void observe(const char* operation, const OperationCost& cost,
                 const std::function<void()>& compute) override {
        const auto start = std::chrono::steady_clock::now();
        compute();
        Entry& entry = entries_[operation];
        entry.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        entry.cost.flops += cost.flops;
        entry.cost.bytes += cost.bytes;
        ++entry.calls;
    }

    const std::map<std::string, Entry>& entries() const { return entries_; }
    void reset() { entries_.clear(); }

  private:
    std::map<std::string, Entry> entries_;
};

}  // namespace train_qat
