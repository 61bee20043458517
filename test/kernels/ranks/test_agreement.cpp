#include "kernels/ranks/agreement.h"

#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/files.h"
#include "test/support/thread_communicator.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// What run_together throws on each rank when `function` gets the rank's number.
std::vector<std::string> errors_of(int ranks, const std::function<void(int)>& function) {
    std::vector<std::string> errors(static_cast<size_t>(ranks));
    run_ranks(ranks, [&](Communicator& communicator) {
        errors[communicator.rank()] =
            error_of([&] { run_together(communicator, [&] { function(communicator.rank()); }); });
    });
    return errors;
}

}  // namespace

TEST_CASE("an error of one rank is the error of all", "[checkpoint]") {
    CHECK(errors_of(3, [](int) {}) == std::vector<std::string>(3));
    CHECK(errors_of(3, [](int rank) {
              if (rank == 2) throw std::runtime_error("x: no space");
          }) == std::vector<std::string>(3, "rank 2: x: no space"));
    CHECK(errors_of(4, [](int rank) {
              if (rank > 0) throw std::runtime_error("of " + std::to_string(rank));
          }) == std::vector<std::string>(4, "rank 1: of 1"));
    CHECK(errors_of(2, [](int rank) {
              if (rank == 1) throw std::bad_alloc();
          }) == std::vector<std::string>(2, "rank 1: not enough host memory"));
    CHECK(errors_of(2, [](int rank) {
              if (rank == 0) throw std::runtime_error("");
          }) == std::vector<std::string>(2, "rank 0: "));
    // The same from all: no rank is named.
    CHECK(errors_of(3, [](int) { throw std::runtime_error("-b: wrong"); }) ==
          std::vector<std::string>(3, "-b: wrong"));
    const auto cut_off = errors_of(2, [](int) { throw std::runtime_error(std::string(3000, 'x')); });
    CHECK(cut_off[0].find("xxx") == 0);
    CHECK(cut_off[0].size() > 990);
    CHECK(cut_off[1] == cut_off[0]);
}

TEST_CASE("what ranks do together returns each rank's value, or none", "[checkpoint]") {
    // As a run's set-up: can be moved, and has no state before it is complete.
    struct Setup {
        explicit Setup(int number) : rank(std::make_unique<int>(number)) {}
        std::unique_ptr<int> rank;
    };
    for (const int ranks : {1, 3}) {
        std::vector<int> values(static_cast<size_t>(ranks), -1);
        run_ranks(ranks, [&](Communicator& communicator) {
            const Setup setup = run_together(communicator, [&] { return Setup(communicator.rank()); });
            values[communicator.rank()] = *setup.rank;
        });
        for (int rank = 0; rank < ranks; ++rank) CHECK(values[rank] == rank);
    }
    std::vector<std::string> errors(3);
    run_ranks(3, [&](Communicator& communicator) {
        errors[communicator.rank()] = error_of([&] {
            run_together(communicator, [&] {
                if (communicator.rank() == 1) throw std::runtime_error("no setup");
                return Setup(communicator.rank());
            });
        });
    });
    CHECK(errors == std::vector<std::string>(3, "rank 1: no setup"));
}

TEST_CASE("a single rank's exception stays what it is", "[checkpoint]") {
    struct Special : std::runtime_error {
        Special() : std::runtime_error(std::string(3000, 'x')) {}
    };
    const auto single = make_single_communicator();
    try {
        run_together(*single, [] { throw Special(); });
        CHECK(false);
    } catch (const Special& error) {
        CHECK(std::string(error.what()) == std::string(3000, 'x'));
    }
}

TEST_CASE("bugs and lost ranks end the ranks without agreement", "[checkpoint]") {
    CHECK_THROWS_AS(run_ranks(2,
                              [](Communicator& communicator) {
                                  run_together(communicator, [&] {
                                      if (communicator.rank() == 1) throw std::logic_error("bug");
                                  });
                              }),
                    std::logic_error);
    CHECK_THROWS_AS(run_ranks(2,
                              [](Communicator& communicator) {
                                  run_together(communicator, [&] {
                                      if (communicator.rank() == 1) throw RankError("gone");
                                  });
                              }),
                    RankError);
}

TEST_CASE("rank 0 acts and tells, sums wrap around", "[checkpoint]") {
    std::vector<int> calls(3);
    std::vector<std::string> texts(3);
    std::vector<uint64_t> sums(3);
    run_ranks(3, [&](Communicator& communicator) {
        const int rank = communicator.rank();
        run_on_rank_0(communicator, [&] { ++calls[rank]; });
        texts[rank] = text_of_rank_0(communicator, "of " + std::to_string(rank));
        sums[rank] = sum_over_ranks(communicator, UINT64_MAX - static_cast<uint64_t>(rank));
    });
    CHECK(calls == std::vector<int>{1, 0, 0});
    run_ranks(3, [&](Communicator& communicator) {
        texts[communicator.rank()] =
            error_of([&] { run_on_rank_0(communicator, [] { throw std::runtime_error("x: exists"); }); });
    });
    CHECK(texts == std::vector<std::string>(3, "x: exists"));
    run_ranks(3, [&](Communicator& communicator) {
        texts[communicator.rank()] =
            text_of_rank_0(communicator, "of " + std::to_string(communicator.rank()));
    });
    CHECK(texts == std::vector<std::string>(3, "of 0"));
    CHECK(sums == std::vector<uint64_t>(3, UINT64_MAX - 5));
}
