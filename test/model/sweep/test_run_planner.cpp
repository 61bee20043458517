// What tells the runs of a sweep from those of another one in the same directory.
#include "model/sweep/run_planner.h"

#include <sstream>

#include "test/support/catch.h"
#include "test/support/files.h"
#include "test/support/shards.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// A sweep of one bit width below the same flags, with shards of its own.
class SweepFlags {
  public:
    SweepFlags() {
        grid_ = directory_.write("grid.json", R"({"b": [2, 4]})");
        for (const char* name : {"a.bin", "b.bin"}) {
            std::vector<uint32_t> tokens(600);
            for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = (i * (name[0] == 'a' ? 7 : 11)) % 61;
            write_shard(directory_ / name, tokens, 61, 0);
        }
    }

    // The ids of all jobs.
    std::vector<std::string> ids(const std::string& more, const std::string& training = "a.bin",
                                 const std::string& validation = "a.bin") const {
        std::istringstream words("-layers 1 -width 32 -heads 2 -ffn 64 -seq_len 16 -steps 20 -qat_frac 0.5 " +
                                 more);
        std::vector<std::string> arguments = {std::istream_iterator<std::string>(words), {}};
        for (const std::string& word : {std::string("-sweep"), grid_}) arguments.push_back(word);
        Options options = *parse_command_line(arguments);
        // As if nobody had named it: what was prepared last.
        options.data = {directory_ / training, directory_ / validation, ""};
        std::ostringstream log;
        std::vector<std::string> found;
        for (const SweepJob& job : plan_runs(arguments, options, *backend_, log).plan.jobs)
            found.push_back(job.id);
        return found;
    }

  private:
    const TemporaryDirectory directory_;
    const std::unique_ptr<Backend> backend_ = make_cpu_backend(1);
    std::string grid_;
};

}  // namespace

TEST_CASE("a sweep with what changes bits is another one, job by job", "[run_planner]") {
    const SweepFlags sweep;
    const std::string flags = "-dtype fp32 -batch 4 -grad_accum 2";
    const std::vector<std::string> ids = sweep.ids(flags);
    REQUIRE(ids.size() == 3);  // a trunk and two leaves
    const auto differs = [&](const std::vector<std::string>& others) {
        REQUIRE(others.size() == ids.size());
        for (size_t i = 0; i < ids.size(); ++i) CHECK(others[i] != ids[i]);
    };
    // The same eight sequences a step, divided otherwise.
    differs(sweep.ids("-dtype fp32 -batch 8"));
    differs(sweep.ids("-dtype fp32 -batch 2 -grad_accum 4"));
    differs(sweep.ids("-dtype fp32 -batch 2 -total_batch 8"));
    differs(sweep.ids("-dtype fp32 -batch 4 -total_batch 8 -sweep_ranks 2"));
    differs(sweep.ids(flags + " -qat_gemm fused"));
    differs(sweep.ids(flags + " -group 32"));
    differs(sweep.ids(flags + " -scale_lr 2"));
    differs(sweep.ids(flags + " -seed 2"));
    differs(sweep.ids(flags + " -val_every 5"));
    differs(sweep.ids(flags, "b.bin"));
    differs(sweep.ids(flags, "a.bin", "b.bin"));
}

TEST_CASE("a sweep with the same bits goes on, however its flags are spelled", "[run_planner]") {
    const SweepFlags sweep;
    const std::vector<std::string> ids = sweep.ids("-dtype fp32 -batch 4 -grad_accum 2");
    CHECK(sweep.ids("-dtype fp32 -batch 4 -total_batch 8") == ids);
    CHECK(sweep.ids("-dtype fp32 -batch 4 -grad_accum 2 -zero 0 -threads 3 -save_every 7 -device cpu") ==
          ids);
}
