// Training on several ranks against the same training on one: ranks as threads, each with a backend of its
// own.
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/parallel_training.h"
#include "test/support/thread_communicator.h"

namespace train_qat::test {

namespace {

std::vector<RankTrained> train(const ParallelCase& c, const ModelConfig& config, int ranks,
                               const RankTrained* leader = nullptr) {
    std::vector<RankTrained> trained(static_cast<size_t>(ranks));
    run_ranks(ranks, [&](Communicator& communicator) {
        const std::unique_ptr<Backend> backend = make_cpu_backend(1);
        trained[communicator.rank()] = train_rank(c, config, *backend, communicator, leader);
    });
    return trained;
}

}  // namespace

TEST_CASE("ranks train like one process on the same global batch", "[data_parallel]") {
    for (double bits : {1.0, 2.0, 4.0, 8.0})
        for (int64_t group : {0, 8}) {
            ParallelCase c{bits, group};
            c.micro_batches = 12;
            const RankTrained expected = train(c, tiny_config(), 1)[0];
            REQUIRE(expected.losses.back() < expected.losses.front());
            for (int ranks : {2, 3, 4}) {
                c.micro_batches = 12 / ranks;
                INFO(text_of(c, ranks));
                for (const RankTrained& trained : train(c, tiny_config(), ranks, &expected))
                    CHECK(departure(trained, expected, tokens_of_step(c, tiny_config()) * ranks) == "");
            }
        }
}

// bfloat16 where this CPU has it.
static DType or_float32(DType wanted) {
    return make_cpu_backend(1)->supports(wanted) ? wanted : DType::float32;
}

TEST_CASE("dividing the optimizer's state changes no bit", "[data_parallel]") {
    struct Drawn {
        double bits;
        int64_t group;
        DType dtype;
        int ranks;
    };
    for (const Drawn& drawn :
         {Drawn{1.58, 0, DType::float32, 2}, Drawn{3, 8, DType::float32, 3}, Drawn{5, 0, DType::bfloat16, 4},
          Drawn{2, 8, DType::bfloat16, 5}, Drawn{6, 0, DType::float32, 30}}) {
        ParallelCase c{drawn.bits, drawn.group, or_float32(drawn.dtype), 1, 1, 8, 4};
        ModelConfig config = drawn.ranks % 2 == 0 ? tiny_other_config() : tiny_config();
        config.layers = 1;
        INFO(text_of(c, drawn.ranks));
        const std::vector<RankTrained> sharded = train(c, config, drawn.ranks);
        const std::vector<RankTrained> again = train(c, config, drawn.ranks);
        c.zero = 0;
        const std::vector<RankTrained> whole = train(c, config, drawn.ranks);
        for (int rank = 0; rank < drawn.ranks; ++rank) {
            CHECK(difference(sharded[rank], again[rank]) == "");
            CHECK(difference(sharded[rank], whole[rank]) == "");
            CHECK(difference(whole[rank], whole[0]) == "");
        }
        // Every row is kept by exactly one rank.
        for (const auto& [name, rows] : sharded[0].state) {
            int64_t next = 0;
            for (const RankTrained& rank : sharded) {
                const Rows& kept = rank.state.at(name);
                CHECK(kept.first == next);
                next += std::ssize(kept.values) / kept.columns;
            }
            CHECK(next == rows.whole);
        }
    }
}

TEST_CASE("a step sends what is said of it", "[data_parallel]") {
    for (int zero : {0, 1})
        for (int ranks : {2, 3}) {
            ParallelCase c{2, 8, or_float32(DType::bfloat16), zero, 1, 4, 2};
            INFO(text_of(c, ranks));
            for (const RankTrained& trained : train(c, tiny_config(), ranks)) {
                const auto check = [&](const Traffic& counted, const DataParallel::StepTraffic& said) {
                    // Beside gradients and weights there are the sums of squares: a float for each parameter.
                    const auto parameters = static_cast<int64_t>(2 + 9 * tiny_config().layers);
                    CHECK(counted.total() - said.total() == parameters * 4 * (ranks - 1));
                    CHECK((said.weights > 0) == (zero == 1));
                };
                check(trained.counted_fp, trained.fp_traffic);
                check(trained.counted_qat, trained.qat_traffic);
                CHECK(trained.fp_traffic.weights == trained.fp_traffic.unpacked_weights);
                CHECK(trained.qat_traffic.unpacked_weights == trained.fp_traffic.unpacked_weights);
            }
        }
}

}  // namespace train_qat::test
