// The communicators that need no launcher, and what all of them share; test/ranks/rank_test.cpp has the others.
#include <mutex>

#include "kernels/ranks/communicator.h"
#include "kernels/ranks/task_thread.h"
#include "test/support/catch.h"
#include "test/support/collectives.h"
#include "test/support/thread_communicator.h"

namespace train_qat::test {

TEST_CASE("one rank's collectives", "[communicator]") {
    const std::unique_ptr<Communicator> single = make_single_communicator();
    const std::unique_ptr<Backend> backend = make_cpu_backend(1);
    CHECK(check_collectives(*single, *backend) == std::vector<std::string>());
    CHECK(single->traffic().total() == 0);
}

TEST_CASE("collectives of ranks as threads", "[communicator]") {
    for (int ranks : {2, 3, 5}) {
        std::mutex mutex;
        std::vector<std::string> wrong;
        run_ranks(ranks, [&](Communicator& communicator) {
            const std::unique_ptr<Backend> backend = make_cpu_backend(1);
            const auto found = check_collectives(communicator, *backend);
            const std::lock_guard lock(mutex);
            wrong.insert(wrong.end(), found.begin(), found.end());
        });
        CHECK(wrong == std::vector<std::string>());
    }
}

TEST_CASE("rows are divided without gaps", "[communicator]") {
    for (int64_t rows : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{64}, int64_t{1} << 40})
        for (int ranks : {1, 2, 3, 7, 100}) {
            CHECK(first_row(rows, 0, ranks) == 0);
            CHECK(first_row(rows, ranks, ranks) == rows);
            for (int rank = 0; rank < ranks; ++rank) {
                const int64_t count = first_row(rows, rank + 1, ranks) - first_row(rows, rank, ranks);
                CHECK((count == rows / ranks || count == rows / ranks + 1));
            }
        }
}

TEST_CASE("collectives refuse what no array is", "[communicator]") {
    const std::unique_ptr<Communicator> single = make_single_communicator();
    float number = 0;
    const RankRows nowhere{nullptr, 1, 4}, half_floats{&number, 1, 2};
    CHECK_THROWS_AS(single->all_gather({&nowhere, 1}), std::logic_error);
    CHECK_THROWS_AS(single->reduce_scatter({&half_floats, 1}), std::logic_error);
    CHECK_THROWS_AS(single->broadcast(&number, 4, 1), std::logic_error);
    CHECK_THROWS_AS(single->all_reduce(Tensor(&number, DType::int32, {1})), std::logic_error);
    CHECK_THROWS_AS(single->gather_on_host(nullptr, 4), std::logic_error);
}

TEST_CASE("a task thread keeps order and the first error", "[communicator]") {
    std::vector<int> done;
    TaskThread thread;
    for (int i = 0; i < 100; ++i) thread.add([&done, i] { done.push_back(i); });
    thread.wait();
    CHECK(done.size() == 100);
    CHECK(std::is_sorted(done.begin(), done.end()));
    thread.add([] { throw RankError("lost"); });
    thread.add([&done] { done.push_back(-1); });
    CHECK_THROWS_AS(thread.wait(), RankError);
    CHECK_THROWS_AS(thread.wait(), RankError);
    CHECK(done.back() == 99);
}

}  // namespace train_qat::test
