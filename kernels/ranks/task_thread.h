// A thread that does one task after another.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace train_qat {

class TaskThread {
  public:
    TaskThread() : thread_([this] { run(); }) {}
    // Tasks that have not begun are dropped.
    ~TaskThread() {
        {
            const std::lock_guard lock(mutex_);
            ending_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    TaskThread(const TaskThread&) = delete;
    TaskThread& operator=(const TaskThread&) = delete;

    void add(std::function<void()> task) {
        {
            const std::lock_guard lock(mutex_);
            tasks_.push_back(std::move(task));
        }
        changed_.notify_all();
    }

    // Returns when all tasks are done. After a task has thrown, no other begins, and every call of wait()
    // throws what it threw.
    void wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return (tasks_.empty() && !busy_) || error_; });
        if (error_) std::rethrow_exception(error_);
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [&] { return ending_ || (!tasks_.empty() && !error_); });
            if (ending_) return;
            const std::function<void()> task = std::move(tasks_.front());
            tasks_.pop_front();
            busy_ = true;
            lock.unlock();
            std::exception_ptr error;
            try {
                task();
            } catch (...) {
                error = std::current_exception();
            }
            lock.lock();
            busy_ = false;
            error_ = error;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> tasks_;
    bool busy_ = false, ending_ = false;
    std::exception_ptr error_;
    std::thread thread_;  // last: it uses the members above
};

}  // namespace train_qat
