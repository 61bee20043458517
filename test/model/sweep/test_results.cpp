// results.jsonl: whole lines from many writers, repairs, and what a record says.
#include "model/sweep/results.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <thread>

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/sweep_fixture.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

using Json = nlohmann::ordered_json;

Json record(const std::string& run, int value) {
    return {{"run", run}, {"value", value}, {"filling", std::string(3000 + value, 'x')}};
}

std::vector<std::string> runs_in(const std::string& path) {
    std::vector<std::string> runs;
    for (const Json& found : read_results(path)) runs.push_back(found["run"]);
    return runs;
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("results of many processes and threads are whole lines", "[sweep_results]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "results.jsonl";
    CHECK(read_results(path).empty());
    constexpr int writers = 4, records = 9;
    const auto write = [&](const std::string& writer) {
        for (int i = 0; i < records; ++i) append_result(path, record(writer + std::to_string(i), i));
    };
    std::vector<pid_t> children;
    for (int i = 0; i < writers; ++i) {
        children.push_back(fork_quietly());
        if (children.back() != 0) continue;
        try {
            write("process " + std::to_string(i) + " ");
        } catch (...) {
            ::_exit(1);
        }
        ::_exit(0);
    }
    std::vector<std::thread> threads;
    for (int i = 0; i < writers; ++i) threads.emplace_back(write, "thread " + std::to_string(i) + " ");
    for (std::thread& thread : threads) thread.join();
    for (const pid_t child : children) {
        int status = 1;
        ::waitpid(child, &status, 0);
        CHECK(status == 0);
    }
    const auto found = read_results(path);
    CHECK(found.size() == 2 * writers * records);
    for (const Json& line : found)
        CHECK(line["filling"].get<std::string>().size() == 3000 + line["value"].get<size_t>());
}

TEST_CASE("a line that was cut off is dropped, a whole one without its end is kept", "[sweep_results]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "results.jsonl";
    append_result(path, record("a", 1));
    append_result(path, record("b", 2));
    const std::string whole = read_bytes(path);
    for (const size_t missing : {2, 5, 1500, 3020}) {
        write_bytes(path, whole.substr(0, whole.size() - missing));
        CHECK(runs_in(path) == Names{"a"});
        append_result(path, record("c", 3));
        CHECK(runs_in(path) == Names{"a", "c"});
        CHECK(read_bytes(path).back() == '\n');
    }
    write_bytes(path, whole.substr(0, whole.size() - 1));
    CHECK(runs_in(path) == Names{"a", "b"});
    append_result(path, record("c", 3));
    CHECK(runs_in(path) == Names{"a", "b", "c"});
    write_bytes(path, "{\"ru");
    CHECK(read_results(path).empty());
    append_result(path, record("c", 3));
    CHECK(runs_in(path) == Names{"c"});
}

TEST_CASE("of a run that appears twice the later record counts", "[sweep_results]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "results.jsonl";
    append_result(path, record("a", 1));
    append_result(path, record("b", 2));
    append_result(path, record("a", 3));
    const auto found = read_results(path);
    REQUIRE(found.size() == 2);
    CHECK(found[0]["run"] == "a");
    CHECK(found[0]["value"] == 3);
    CHECK(found[1]["value"] == 2);
}

TEST_CASE("NaN becomes null, and damage in the middle is an error", "[sweep_results]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "results.jsonl";
    append_result(path, {{"run", "a\nb"}, {"x", std::nan("")}, {"y", HUGE_VAL}});
    const auto found = read_results(path);
    REQUIRE(found.size() == 1);
    CHECK(found[0]["x"].is_null());
    CHECK(found[0]["y"].is_null());
    CHECK(found[0]["run"] == "a\nb");
    for (const std::string damaged : {"{\"run\": 3}", "{\"run\"", "[]", "", "{\"value\": 3}"}) {
        write_bytes(path, damaged + "\n{\"run\": \"a\"}\n");
        CHECK(mentions(error_of([&] { read_results(path); }), {"results.jsonl", "line 1"}));
    }
    CHECK(mentions(error_of([] { append_result("/nonexistent/results.jsonl", {}); }),
                   {"/nonexistent/results.jsonl"}));
}

TEST_CASE("a full disk leaves the other lines", "[sweep_results]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "results.jsonl";
    append_result(path, record("a", 1));
    std::string error;
    {
        const FileSizeLimit limit(4000);
        error = error_of([&] { append_result(path, record("b", 2)); });
    }
    CHECK(mentions(error, {"results.jsonl"}));
    CHECK(runs_in(path) == Names{"a"});
    append_result(path, record("b", 2));
    CHECK(runs_in(path) == Names{"a", "b"});
}

TEST_CASE("the record of a run", "[sweep_results]") {
    SweepOutcome outcome;
    outcome.run = "b4_f0.2";
    outcome.job = "0123456789abcdef";
    outcome.asked_fraction = 0.2;
    outcome.seed = UINT64_MAX;
    outcome.plan = sweep_run("b4_f0.2", 100, 4, 0.2).plan;
    outcome.results.full_precision = 3.5;
    outcome.results.rounded = 4.5;
    outcome.results.quantized = 3.25;
    outcome.trained_steps = 20;
    outcome.shared_steps = 80;
    outcome.seconds = 1.5;
    outcome.directory = "out/runs/b4";
    outcome.vocabulary = 1024;
    outcome.data = "fedcba9876543210";
    const Json done = result_record(outcome);
    const Json expected = {
        {"run", "b4_f0.2"},
        {"job", "0123456789abcdef"},
        {"status", "done"},
        {"reason", nullptr},
        {"n", 1'000'000},
        {"tokens", 100'000},
        {"b", 4.0},
        {"qat_frac", 0.2},
        {"qat_frac_used", 0.2},
        {"cooldown", "auto"},
        {"cooldown_used", "fused"},
        {"seed", UINT64_MAX},
        {"lr", 1e-3},
        {"qat_lr", 1e-3},
        {"vocabulary", 1024},
        {"data", "fedcba9876543210"},
        {"tokens_per_step", 1000},
        {"fp_tokens", 80'000},
        {"qat_tokens", 20'000},
        {"tokens_per_parameter_byte", 0.2},
        {"losses", {{"full_precision_at_switch", 3.5}, {"rounded_at_switch", 4.5}, {"quantized", 3.25}}},
        {"validation_loss", 3.25},
        {"trained_steps", 20},
        {"shared_steps", 80},
        {"seconds", 1.5},
        {"directory", "out/runs/b4"}};
    CHECK(Json::parse(done.dump()).dump() == Json::parse(expected.dump()).dump());

    outcome.asked_fraction.reset();
    outcome.results.quantized = std::nan("");
    CHECK(result_record(outcome)["qat_frac"] == "auto");
    CHECK(result_record(outcome)["validation_loss"].is_null());
    CHECK(result_record(outcome)["losses"]["quantized"].is_null());
    outcome.results.quantized = 3.25;
    outcome.failure = "loss is not finite";
    const Json failed = result_record(outcome);
    CHECK(failed["status"] == "failed");
    CHECK(failed["reason"] == "loss is not finite");
    CHECK(failed["validation_loss"].is_null());
}

TEST_CASE("the final loss is that of the model at its bits", "[sweep_results]") {
    RunResults results;
    results.full_precision = 3.5;
    results.rounded = 4.5;
    CHECK_FALSE(final_validation_loss(sweep_run("a", 10, 4, 0.5).plan, results));
    CHECK(final_validation_loss(sweep_run("a", 10, 4, 0).plan, results) == 4.5);
    CHECK(final_validation_loss(sweep_run("a", 10, 16, 0).plan, results) == 3.5);
    results.quantized = 3.75;
    CHECK(final_validation_loss(sweep_run("a", 10, 4, 1).plan, results) == 3.75);
}
