// -law, -n auto and -b auto from the command line to the options that a run reads.
#include "model/job/choices.h"

#include <random>
#include <sstream>

#include "model/job/run_plan.h"
#include "model/plan/model_bytes.h"
#include "model/run/results.h"
#include "model/sweep/run_planner.h"
#include "model/units.h"
#include "test/support/catch.h"
#include "test/support/command_line.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/random_law.h"
#include "test/support/run_fixture.h"
#include "test/support/shards.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// A directory with a random law that predicts a fraction everywhere.
class WithLaw {
  public:
    WithLaw() : random_(fresh_seed()), law_(random_law(random_)) {
        law_.fraction_by_loss = true;
        path_ = directory_.write("law.json", json_of(law_).dump());
    }

    Options options(const std::string& line) const {
        return with_law(parse(line + " -vocab 1024 -seq_len 64 -batch 2 -law " + path_));
    }
    ResolvedOptions resolve(const std::string& line, int ranks = 1) const {
        return resolve_choices(options(line), ranks);
    }
    const TemporaryDirectory& directory() const { return directory_; }
    const std::string& path() const { return path_; }
    const ScalingLaw& law() const { return law_; }

  private:
    std::mt19937_64 random_;
    ScalingLaw law_;
    const TemporaryDirectory directory_;
    std::string path_;
};

}  // namespace

TEST_CASE("flags that need a law or one another say so", "[choices]") {
    CHECK(mentions(parse_error("-b auto"), {"-b auto", "-law"}));
    CHECK(mentions(parse_error("-n auto -flops 1e15"), {"-n auto", "-law"}));
    CHECK(mentions(parse_error("-n 1M -flops 1e15"), {"-flops", "-law"}));
    CHECK(mentions(parse_error("-n auto -law x"), {"-n auto", "-flops"}));
    CHECK(mentions(parse_error("-n 1M -flops 1e15 -law x"), {"-flops", "-n auto"}));
    CHECK(mentions(parse_error("-n auto -flops 1e15 -law x -tokens 1M"), {"-flops", "-tokens"}));
    CHECK(mentions(parse_error("-n auto -flops 1e15 -law x -steps 10"), {"-flops", "-steps"}));
    for (const char* flops : {"0", "-1", "inf", "nan", "many", "1e999"})
        CHECK(mentions(parse_error(std::string("-n auto -law x -flops ") + flops), {"-flops"}));
    CHECK(mentions(parse_error("-n 1M -memory 5Q"), {"-memory", "5Q"}));
    CHECK(mentions(parse_error("-b many"), {"-b", "many"}));
    CHECK(mentions(error_of([] { with_law(parse("-law /nowhere/x")); }), {"-law /nowhere/x"}));
    CHECK_FALSE(with_law(parse("-n 1M")).plan.law);
}

TEST_CASE("bits are resolved for everything that reads them", "[choices]") {
    const WithLaw with;
    const ModelConfig config = resolve_config("400K", 1024, 64);
    const int64_t memory = packed_model_bytes(config, 2, 0);
    const ResolvedOptions resolved =
        with.resolve("-n 400K -b auto -tokens 12M -memory " + std::to_string(memory), 3);
    const Options& options = resolved.options;
    CHECK(options.bits <= 2);
    CHECK(options.plan.bits == options.bits);
    CHECK_FALSE(options.choose_bits);
    CHECK_FALSE(resolved.report.empty());
    const RunPlan run = plan_run(options, 3);
    CHECK(run.plan.bits == options.bits);
    CHECK(run.plan.tokens_per_step == 3 * 2 * 64);
    const auto n = static_cast<double>(run.plan.parameters), d = static_cast<double>(run.plan.tokens());
    CHECK(run.plan.qat_fraction == *with.law().optimal_fraction(n, d, options.bits));
    const auto loss = [&](double bits) {
        return with.law().loss(n, d, bits, *with.law().optimal_fraction(n, d, bits)).value;
    };
    for (const double bits : {1.0, 1.58, 2.0}) CHECK(loss(options.bits) <= loss(bits));
}

TEST_CASE("a size is resolved to one that gives the same run again", "[choices]") {
    const WithLaw with;
    const std::string line = "-n auto -b auto -flops 3e13";
    const Options first = with.resolve(line).options, again = with.resolve(line).options;
    CHECK(first.size == again.size);
    CHECK_FALSE(first.size.empty());
    CHECK_FALSE(first.choose_size);
    REQUIRE(first.plan.steps);
    CHECK(first.plan.steps == again.plan.steps);
    CHECK(first.bits == again.bits);
    const RunPlan run = plan_run(first, 1);
    CHECK(static_cast<double>(run.plan.tokens()) * training_flops_per_token(run.config) ==
          Approx(3e13).epsilon(0.01));
    CHECK(with.resolve("-n auto -b 3 -flops 3e13").options.bits == 3);
}

TEST_CASE("a model that does not fit into -memory is one line", "[choices]") {
    const WithLaw with;
    const int64_t bytes = packed_model_bytes(resolve_config("400K", 1024, 64), 4, 0);
    const auto line = [](int64_t memory) { return "-n 400K -b 4 -memory " + std::to_string(memory); };
    CHECK(with.resolve(line(bytes)).report.empty());
    CHECK(mentions(error_of([&] { with.resolve(line(bytes - 1)); }),
                   {"-memory " + std::to_string(bytes - 1), format_exact(bytes) + " bytes"}));
}

TEST_CASE("run.json and the closing table hold the prediction", "[choices]") {
    const WithLaw with;
    const Options options = with.options("-n 400K -b 2 -tokens 12M -qat_frac 0.3");
    RunPlan run = plan_run(options, 1);
    CHECK_FALSE(run_record({}, run.plan, {}, "", {})["plan"].contains("predictions"));
    add_predictions(options, run);
    const auto record = run_record({}, run.plan, {}, "", {})["plan"]["predictions"];
    const auto n = static_cast<double>(run.plan.parameters), d = static_cast<double>(run.plan.tokens());
    CHECK(record["law"] == with.path());
    CHECK(record["optimal_fraction"]["value"] == *with.law().optimal_fraction(n, d, 2));
    const Prediction loss = with.law().loss(n, d, 2, 0.3);
    CHECK(record["loss_at_qat_fraction"]["value"].get<double>() == Approx(loss.value));
    CHECK(record["loss_at_qat_fraction"]["low"].get<double>() == Approx(loss.low));
    CHECK(record["loss_at_qat_fraction"]["high"].get<double>() == Approx(loss.high));
    CHECK(record["loss_in_full_precision"]["value"].is_number());
    CHECK(record["extrapolated"].is_array());
    RunResults results;
    CHECK(results_table(results, run.plan).find("predicted") == std::string::npos);
    results.quantized = 3;
    CHECK_THAT(results_table(results, run.plan), contains_text("predicted by the loss law"));
}

TEST_CASE("a sweep's runs each take what the law says of them", "[choices]") {
    const WithLaw with;
    const TemporaryDirectory& directory = with.directory();
    std::vector<uint32_t> tokens(600);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = i * 7 % 61;
    write_shard(directory / "a.bin", tokens, 1024, 0);
    const std::unique_ptr<Backend> backend = make_cpu_backend(1);
    const auto planned = [&](const std::string& grid, const std::string& flags) {
        std::vector<std::string> arguments = words(flags + " -tokens 9M -seq_len 16 -law " + with.path());
        arguments.insert(arguments.end(),
                         {"-sweep", directory.write("grid.json", grid), "-i", directory / "a.bin"});
        std::ostringstream log;
        return plan_runs(arguments, with_law(*parse_command_line(arguments)), *backend, log);
    };
    const Sweep by_size = planned(R"({"n": ["300K", "500K"], "seed": [1, 2]})", "-b auto");
    REQUIRE(by_size.runs.size() == 4);
    for (size_t i = 0; i < by_size.runs.size(); ++i) {
        const Plan& plan = by_size.plan.runs[i].plan;
        CHECK_FALSE(by_size.runs[i].choose_bits);
        CHECK(plan.bits == by_size.runs[i].bits);
        CHECK(plan.qat_fraction == *with.law().optimal_fraction(static_cast<double>(plan.parameters),
                                                                static_cast<double>(plan.tokens()),
                                                                plan.bits));
    }
    const Sweep by_bits = planned(R"({"b": [1, 4]})", "-n 300K");
    CHECK(by_bits.plan.runs[0].plan.bits == 1);
    CHECK(by_bits.plan.runs[1].plan.bits == 4);
    CHECK(by_bits.plan.runs[0].plan.qat_fraction != by_bits.plan.runs[1].plan.qat_fraction);
}
