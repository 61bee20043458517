// Prints the table of a sweep now and then, while workers train.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "model/sweep/queue.h"

namespace train_qat {

class ProgressPrinter {
  public:
    // To the standard output every 30 seconds, from a thread of its own, until it is destroyed.
    explicit ProgressPrinter(const SweepQueue& queue);
    ~ProgressPrinter();
    ProgressPrinter(const ProgressPrinter&) = delete;
    ProgressPrinter& operator=(const ProgressPrinter&) = delete;

  private:
    void run();

    const SweepQueue& queue_;
    std::mutex mutex_;
    std::condition_variable ended_;
    bool ending_ = false;
    std::thread thread_;  // last: it uses the members above
};

}  // namespace train_qat
