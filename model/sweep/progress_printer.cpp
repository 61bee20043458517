#include "model/sweep/progress_printer.h"

#include <chrono>
#include <iostream>
#include <stdexcept>

#include "model/sweep/progress.h"

namespace train_qat {

ProgressPrinter::ProgressPrinter(const SweepQueue& queue) : queue_(queue), thread_([this] { run(); }) {}

ProgressPrinter::~ProgressPrinter() {
    {
        const std::lock_guard lock(mutex_);
        ending_ = true;
    }
    ended_.notify_all();
    thread_.join();
}

void ProgressPrinter::run() {
    constexpr auto interval = std::chrono::seconds(30);
    std::unique_lock lock(mutex_);
    while (!ended_.wait_for(lock, interval, [this] { return ending_; })) {
        try {
            std::cout << "\n" << format_progress(queue_.plan(), view_of(queue_)) << std::flush;
        } catch (const std::runtime_error& error) {
            std::cout << "progress: " << error.what() << std::endl;  // the training goes on
        }
    }
}

}  // namespace train_qat
