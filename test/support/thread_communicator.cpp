#include "test/support/thread_communicator.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace train_qat::test {

namespace {

// What the threads share: a barrier, and where each rank's arrays are.
class Meeting {
  public:
    explicit Meeting(int ranks) : arrays(static_cast<size_t>(ranks)), ranks_(ranks) {}

    void arrive() {
        std::unique_lock lock(mutex_);
        const int64_t round = round_;
        if (++arrived_ == ranks_) {
            arrived_ = 0;
            ++round_;
            everyone_.notify_all();
        }
        everyone_.wait(lock, [&] { return round_ != round || broken_; });
        if (round_ == round) throw RankError("a rank has ended");
    }
    void leave_with(std::exception_ptr error) {
        const std::lock_guard lock(mutex_);
        if (!broken_) error_ = error;
        broken_ = true;
        everyone_.notify_all();
    }
    std::exception_ptr error() const { return error_; }

    std::vector<std::vector<RankRows>> arrays;  // of each rank

  private:
    const int ranks_;
    std::mutex mutex_;
    std::condition_variable everyone_;
    int arrived_ = 0;
    int64_t round_ = 0;
    bool broken_ = false;
    std::exception_ptr error_;
};

class ThreadCommunicator final : public Communicator {
  public:
    ThreadCommunicator(Meeting& meeting, int rank, int size) : Communicator(rank, size), meeting_(meeting) {}
    bool recordable() const override { return false; }
    std::string describe() const override { return std::to_string(size()) + " threads"; }

  private:
    void start_reduce_scatter(std::span<const RankRows> arrays) override {
        publish(arrays);
        std::vector<std::vector<float>> sums;
        for (size_t i = 0; i < arrays.size(); ++i) sums.push_back(sum_of_own_rows(i));
        meeting_.arrive();  // all have read
        for (size_t i = 0; i < arrays.size(); ++i)
            std::memcpy(own_rows(arrays[i], rank()), sums[i].data(), sums[i].size() * sizeof(float));
        meeting_.arrive();
    }
    void start_all_gather(std::span<const RankRows> arrays) override {
        publish(arrays);
        for (size_t i = 0; i < arrays.size(); ++i)
            for (int other = 0; other < size(); ++other) {
                if (other == rank()) continue;
                std::memcpy(own_rows(arrays[i], other), own_rows(meeting_.arrays[other][i], other),
                            static_cast<size_t>(bytes_of(arrays[i], other)));
            }
        meeting_.arrive();
    }
    void start_broadcast(void* data, int64_t bytes, int root) override {
        const RankRows whole{data, 1, bytes};
        publish({&whole, 1});
        if (rank() != root) std::memcpy(data, meeting_.arrays[root][0].data, static_cast<size_t>(bytes));
        meeting_.arrive();
    }
    void order_after() override {}
    void gather_host_rows(void* data, int64_t bytes) override {
        const RankRows rows{data, size(), bytes};
        start_all_gather({&rows, 1});
    }

    void publish(std::span<const RankRows> arrays) {
        meeting_.arrays[rank()].assign(arrays.begin(), arrays.end());
        meeting_.arrive();
        for (const auto& others : meeting_.arrays)
            if (others.size() != arrays.size()) throw std::logic_error("ranks are out of step");
    }
    int64_t bytes_of(const RankRows& array, int rank) const {
        return (first_row(array.rows, rank + 1, size()) - first_row(array.rows, rank, size())) *
               array.row_bytes;
    }
    char* own_rows(const RankRows& array, int rank) const {
        return static_cast<char*>(array.data) + first_row(array.rows, rank, size()) * array.row_bytes;
    }
    std::vector<float> sum_of_own_rows(size_t array) const {
        std::vector<float> sum(bytes_of(meeting_.arrays[rank()][array], rank()) / sizeof(float));
        for (int other = 0; other < size(); ++other) {
            const auto* values =
                reinterpret_cast<const float*>(own_rows(meeting_.arrays[other][array], rank()));
            for (size_t k = 0; k < sum.size(); ++k) sum[k] = other == 0 ? values[k] : sum[k] + values[k];
        }
        return sum;
    }

    Meeting& meeting_;
};

}  // namespace

void run_ranks(int ranks, const std::function<void(Communicator&)>& body) {
    Meeting meeting(ranks);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; ++rank)
        threads.emplace_back([&, rank] {
            try {
                ThreadCommunicator communicator(meeting, rank, ranks);
                body(communicator);
            } catch (...) {
                meeting.leave_with(std::current_exception());
            }
        });
    for (std::thread& thread : threads) thread.join();
    if (meeting.error()) std::rethrow_exception(meeting.error());
}

}  // namespace train_qat::test
