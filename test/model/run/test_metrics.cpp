#include "model/run/metrics.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <sstream>

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

double relative_error(double actual, double expected) {
    return std::abs(actual - expected) / std::abs(expected);
}

void write_steps(MetricsWriter& writer, int64_t first, int64_t last) {
    for (int64_t step = first; step <= last; ++step) {
        writer.write({{"step", step},
                      {"phase", step < 4 ? "FP" : "QAT"},
                      {"loss", 8.0 / (1.0 + static_cast<double>(step))}});
        if (step % 2 == 0) writer.write({{"step", step}, {"validation_loss", 3.25}});
    }
}

}  // namespace

TEST_CASE("metrics are one JSON object a line, in the caller's order", "[metrics]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "runs/a";
    MetricsWriter writer(output);
    CHECK(writer.path() == output + "/metrics.jsonl");
    writer.write({{"step", 1}, {"phase", "FP"}, {"loss", 4.5}, {"a", 1}});
    CHECK(read_bytes(writer.path()) == "{\"step\":1,\"phase\":\"FP\",\"loss\":4.5,\"a\":1}\n");  // at once
    writer.write({{"step", 2},
                  {"loss", std::nan("")},
                  {"norm", std::numeric_limits<double>::infinity()},
                  {"text", "two\nlines\xff"}});
    CHECK(read_bytes(writer.path()) ==
          "{\"step\":1,\"phase\":\"FP\",\"loss\":4.5,\"a\":1}\n"
          "{\"step\":2,\"loss\":null,\"norm\":null,\"text\":\"two\\nlines\xef\xbf\xbd\"}\n");
    CHECK_NOTHROW(writer.sync());
    CHECK_THROWS_AS(writer.write({{"loss", 1}}), std::logic_error);
    CHECK_THROWS_AS(writer.write({{"step", 1.5}}), std::logic_error);
    CHECK_THROWS_AS(writer.write(nlohmann::ordered_json::array({1})), std::logic_error);
}

TEST_CASE("a resumed run's metrics equal those of an uninterrupted one", "[metrics]") {
    const TemporaryDirectory directory;
    {
        MetricsWriter writer(directory / "whole");
        write_steps(writer, 0, 9);
    }
    const std::string whole = read_bytes(directory / "whole/metrics.jsonl");
    for (int64_t resume = 0; resume <= 10; ++resume) {
        INFO("resumed at step " << resume);
        const std::string output = directory / ("resumed_" + std::to_string(resume));
        {
            MetricsWriter writer(output);
            write_steps(writer, 0, 9);
        }
        {
            MetricsWriter writer(output, resume);
            CHECK(whole.find(read_bytes(writer.path())) == 0);
            write_steps(writer, resume, 9);
        }
        CHECK(read_bytes(output + "/metrics.jsonl") == whole);
        CHECK(std::distance(std::filesystem::directory_iterator(output), {}) == 1);
    }
}

TEST_CASE("a line that a crash cut short is dropped at the resume, wherever it was cut", "[metrics]") {
    const TemporaryDirectory directory;
    const std::string first = "{\"step\":1}\n", second = "{\"step\":2,\"loss\":1.5}";
    for (size_t length = 0; length <= second.size(); ++length) {
        const std::string path = directory.write("metrics.jsonl", first + second.substr(0, length));
        MetricsWriter writer(directory / "", 5);
        CHECK(read_bytes(path) == first);
        writer.write({{"step", 5}});
        CHECK(read_bytes(path) == first + "{\"step\":5}\n");
    }
}

TEST_CASE("foreign and existing metrics are not overwritten", "[metrics]") {
    const TemporaryDirectory directory;
    const auto open_error = [&](std::optional<int64_t> resume) {
        return error_of([&] { MetricsWriter writer(directory / "", resume); });
    };
    const std::string precious = "{\"step\":1}\nnot json\n";
    const std::string path = directory.write("metrics.jsonl", precious);
    CHECK(mentions(open_error(std::nullopt), {"metrics.jsonl", "exists already", "resume"}));
    CHECK(mentions(open_error(0), {"metrics.jsonl", "line 2", "move the file away"}));
    CHECK(read_bytes(path) == precious);
    for (const char* line : {"{}", "[]", "7", "{\"step\":1.5}", "{\"step\":\"1\"}", ""}) {
        directory.write("metrics.jsonl", std::string(line) + "\n");
        CHECK(mentions(open_error(0), {"line 1"}));
    }
    std::filesystem::remove(path);
    CHECK(open_error(7).empty());  // resumed from a checkpoint alone: a new file
    CHECK(read_bytes(path).empty());
    CHECK(mentions(error_of([&] { MetricsWriter writer(path); }),
                   {"metrics.jsonl", "cannot create directory"}));
}

TEST_CASE("a branch copies the steps up to its own, and validations of those before", "[metrics]") {
    const TemporaryDirectory directory;
    const std::string from = directory / "trunk", to = directory / "branch";
    MetricsWriter writer(from);
    write_steps(writer, 1, 3);
    const std::string before = read_bytes(writer.path());
    writer.write({{"step", 4}, {"loss", 2.5}});
    const std::string shared = read_bytes(writer.path());
    writer.write({{"step", 4}, {"validation_loss", 3.25}});
    writer.write({{"step", 4}, {"validation_loss", 3.5}, {"weights", "rounded"}});
    write_steps(writer, 5, 7);
    copy_metrics(writer.path(), 4, to, false);
    CHECK(read_bytes(to + "/metrics.jsonl") == shared);
    CHECK(mentions(error_of([&] { copy_metrics(writer.path(), 4, to, false); }), {to, "exists already"}));
    CHECK(read_bytes(to + "/metrics.jsonl") == shared);
    copy_metrics(writer.path(), 3, to, true);
    CHECK(read_bytes(to + "/metrics.jsonl") == before);
    copy_metrics(writer.path(), 0, to, true);
    CHECK(read_bytes(to + "/metrics.jsonl").empty());
}

TEST_CASE("a full disk leaves whole lines only", "[metrics]") {
    const TemporaryDirectory directory;
    MetricsWriter writer(directory / "");
    writer.write({{"step", 1}});
    std::string error;
    {
        const FileSizeLimit full_disk(20);
        error = error_of([&] { writer.write({{"step", 2}, {"text", "too long for the disk"}}); });
    }
    CHECK(mentions(error, {"metrics.jsonl", "ulimit"}));
    CHECK(read_bytes(writer.path()) == "{\"step\":1}\n");
    writer.write({{"step", 3}});
    CHECK(read_bytes(writer.path()) == "{\"step\":1}\n{\"step\":3}\n");
}

TEST_CASE("run.json is replaced as a whole or not at all", "[metrics]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "run.json";
    write_run_json(path, {{"b", 1}, {"a", {{"x", 0.5}}}});
    const std::string first = "{\n  \"b\": 1,\n  \"a\": {\n    \"x\": 0.5\n  }\n}\n";
    CHECK(read_bytes(path) == first);
    std::string error;
    {
        const FileSizeLimit full_disk(30);
        error = error_of([&] { write_run_json(path, {{"c", std::string(100, 'x')}}); });
    }
    CHECK(mentions(error, {"run.json", "ulimit"}));
    CHECK(read_bytes(path) == first);
    CHECK(std::distance(std::filesystem::directory_iterator(directory / ""), {}) == 1);
    directory.write("run.json.partial", "of a killed run");
    write_run_json(path, {{"c", 2}});
    CHECK(read_bytes(path) == "{\n  \"c\": 2\n}\n");
    CHECK(std::distance(std::filesystem::directory_iterator(directory / ""), {}) == 1);
    CHECK(mentions(error_of([&] {
                       write_run_json(directory / "absent/run.json", {{"c", 2}});
                   }),
                   {"absent", "cannot create"}));
}

TEST_CASE("the console line of a step", "[metrics]") {
    StepLine line{120, 1000, "FP", 4.12344, 1e-3, 0.5321, 6450.4, 0.4123, 192.0};
    CHECK(format_step_line(line) ==
          "step  120/1000  FP   loss 4.1234  lr 1.00e-03  norm 0.532  6,450 tok/s  MFU 41.2%  "
          "12.0% done  ETA 3m12s");
    line = {7, 7, "QAT", std::nan(""), 0, INFINITY, 1'234'567.8, std::nullopt, std::nullopt};
    CHECK(format_step_line(line) ==
          "step 7/7  QAT  loss nan  lr 0.00e+00  norm inf  1,234,568 tok/s  100.0% done");
    CHECK(format_validation_line(120, 1000, "FP", 4.0312, 8192, 1.26) ==
          "step  120/1000  FP   validation loss 4.0312  perplexity 56.33  8,192 tokens in 1.3s");
}

TEST_CASE("the throughput is averaged over time, without the first step", "[metrics]") {
    ThroughputAverage average;
    CHECK(average.tokens_per_second() == 0);
    CHECK(average.seconds_per_step() == 0);
    average.add(1000, 10);  // slow start: all there is to say
    CHECK(relative_error(average.tokens_per_second(), 100) < 1e-12);
    average.add(1000, 1);
    CHECK(relative_error(average.tokens_per_second(), 1000) < 1e-12);
    CHECK(relative_error(average.seconds_per_step(), 1) < 1e-12);
    average.add(1000, 3);
    // Weights 0.95 and 1 of the two steps: 1950 tokens in 0.95 + 3 seconds.
    CHECK(relative_error(average.tokens_per_second(), 1950.0 / 3.95) < 1e-12);
    CHECK(relative_error(average.seconds_per_step(), 3.95 / 1.95) < 1e-12);
    for (int i = 0; i < 1000; ++i) average.add(500, 2);
    CHECK(relative_error(average.tokens_per_second(), 250) < 1e-12);
    CHECK(relative_error(average.seconds_per_step(), 2) < 1e-12);
}

TEST_CASE("the console shows the first, the last and every n-th step", "[metrics]") {
    const auto lines_of = [](int64_t first, int64_t total, int64_t print_every) {
        std::ostringstream output;
        ConsoleProgress progress(output, total, print_every);
        for (int64_t step = first; step <= total; ++step) progress.step({step, "FP", 2, 1e-3, 1, 100, 0.5});
        std::vector<std::string> steps;
        std::istringstream text(output.str());
        for (std::string line; std::getline(text, line);) steps.push_back(line.substr(5, line.find('/') - 5));
        return steps;
    };
    CHECK(lines_of(1, 5, 1) == std::vector<std::string>{"1", "2", "3", "4", "5"});
    CHECK(lines_of(1, 25, 10) == std::vector<std::string>{" 1", "10", "20", "25"});
    CHECK(lines_of(13, 25, 10) == std::vector<std::string>{"13", "20", "25"});
    CHECK(lines_of(1, 3, 100) == std::vector<std::string>{"1", "3"});
    std::ostringstream output;
    CHECK_THROWS_AS(ConsoleProgress(output, 10, 0), std::logic_error);
}

TEST_CASE("the console's rate, utilization and remaining time", "[metrics]") {
    std::ostringstream output;
    ConsoleProgress progress(output, 100, 1, 6e9, 2e12);
    progress.step({1, "FP", 5, 1e-4, 2, 1000, 50});
    progress.step({2, "QAT", 4.5, 2e-4, 1.5, 1000, 10});
    progress.validation(2, "QAT", 1, 2000, 0.2);
    for (int64_t step = 3; step <= 100; ++step) progress.step({step, "QAT", 4, 3e-4, 1, 1000, 10});
    std::istringstream text(output.str());
    std::vector<std::string> lines;
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    REQUIRE(lines.size() == 101);
    // 1000 tokens in 10 s: 100 tokens/s; x 6e9 / 2e12 = 30%; 98 steps left: 980 s.
    CHECK(
        lines[0] ==
        "step   1/100  FP   loss 5.0000  lr 1.00e-04  norm 2.000  20 tok/s  MFU 6.0%  1.0% done  ETA 1h23m");
    CHECK(lines[1] ==
          "step   2/100  QAT  loss 4.5000  lr 2.00e-04  norm 1.500  100 tok/s  MFU 30.0%  2.0% done  ETA "
          "16m20s");
    CHECK(lines[2] == "step   2/100  QAT  validation loss 1.0000  perplexity 2.72  2,000 tokens in 0.2s");
    CHECK(lines[100] ==
          "step 100/100  QAT  loss 4.0000  lr 3.00e-04  norm 1.000  100 tok/s  MFU 30.0%  100.0% done");
    CHECK(relative_error(*progress.model_flops_utilization(), 0.3) < 1e-12);
}
