// WorkerPool: each block once, by whoever is there.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/cpu/platform/worker_pool.h"
#include "test/support/catch.h"

using namespace train_qat;

TEST_CASE("every block is done once before run returns", "[worker_pool]") {
    for (int threads : {1, 2, 5}) {
        WorkerPool pool(threads);
        for (int round = 0; round < 300; ++round) {
            const int64_t blocks = round % 23;
            std::vector<int> done(static_cast<size_t>(blocks), 0);
            pool.run(blocks, [&](int64_t block) { ++done[block]; });
            for (int times : done) REQUIRE(times == 1);
        }
    }
}

TEST_CASE("a block that takes long keeps no other waiting", "[worker_pool]") {
    WorkerPool pool(2);
    std::atomic<int> others{0};
    // The long block ends when all others are done, so by another thread.
    pool.run(20, [&](int64_t block) {
        if (block == 19)
            while (others.load() < 19) std::this_thread::yield();
        else
            ++others;
    });
    CHECK(others == 19);
}

TEST_CASE("workers that sleep wake up for the next job", "[worker_pool]") {
    WorkerPool pool(2);
    for (int round = 0; round < 3; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        std::atomic<int> arrived{0};
        // Both blocks wait for each other: two threads are there.
        pool.run(2, [&](int64_t) {
            ++arrived;
            while (arrived.load() < 2) std::this_thread::yield();
        });
        CHECK(arrived == 2);
    }
}
