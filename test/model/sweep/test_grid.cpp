// The grid of a sweep: its runs, their names and flags, and what its errors say.
#include "model/sweep/grid.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "model/job/options.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

SweepGrid grid_of(const std::string& json) {
    const TemporaryDirectory directory;
    return read_sweep_grid(directory.write("grid.json", json));
}

std::vector<std::string> names_of(const std::string& json) {
    std::vector<std::string> names;
    for (const SweepRun& run : sweep_runs(grid_of(json))) names.push_back(run.name);
    return names;
}

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("a sweep is every combination of its grid", "[sweep_grid]") {
    const std::vector<SweepRun> runs =
        sweep_runs(grid_of(R"({"lr": 1e-3, "seed": [1, "22"], "cooldown": "fused", "qat_frac": [0.2, "auto"],
                    "b": 1.58, "tokens": 3e6, "n": ["5M", 10000000, "1.5m"]})"));
    REQUIRE(runs.size() == 12);
    CHECK(runs[0].name == "n5M_t3M_b1.58_f0.2_fused_s1_lr0.001");
    CHECK(runs[0].flags == Words{"-n", "5M", "-tokens", "3000000", "-b", "1.58", "-qat_frac", "0.2",
                                 "-cooldown", "fused", "-seed", "1", "-lr", "0.001"});
    CHECK(runs[1].name == "n5M_t3M_b1.58_f0.2_fused_s22_lr0.001");
    CHECK(runs[2].name == "n5M_t3M_b1.58_fauto_fused_s1_lr0.001");
    CHECK(runs[4].name == "n10M_t3M_b1.58_f0.2_fused_s1_lr0.001");
    CHECK(runs[4].flags[1] == "10000000");
    CHECK(runs[11].name == "n1.5M_t3M_b1.58_fauto_fused_s22_lr0.001");
}

TEST_CASE("names are short, unique and safe as names of files", "[sweep_grid]") {
    CHECK(names_of(R"({"b": [2, 4]})") == Words{"b2", "b4"});
    CHECK(names_of(R"({"b": [2], "seed": [3, 4]})") == Words{"b2_s3", "b2_s4"});
    CHECK(names_of(R"({"b": 4, "seed": [1]})") == Words{"run"});
    CHECK(names_of("{}") == Words{"run"});
    CHECK(names_of(R"({"n": ["1234567", "12345", "999", "1K", "2.5B", "1T", "1234000", "1.0004M"]})") ==
          Words{"n1234567", "n12345", "n999", "n1K", "n2.5B", "n1T", "n1.234M", "n1000400"});
    CHECK(names_of(R"({"lr": ["3e-4", 1e-05, "0.0010"]})") == Words{"lr0.0003", "lr1e-05", "lr0.001"});
    const Words names =
        names_of(R"({"n": ["1M", "2M"], "qat_frac": ["auto", 0, 1.0, 0.125], "lr": [1, 1e-7]})");
    CHECK(std::set<std::string>(names.begin(), names.end()).size() == 16);
    for (const std::string& name : names)
        CHECK(std::all_of(name.begin(), name.end(), [](unsigned char c) {
            return std::isalnum(c) || c == '.' || c == '_' || c == '-' || c == '+';
        }));
}

TEST_CASE("errors of a grid name the file and the key", "[sweep_grid]") {
    const auto check = [](const std::string& json, std::initializer_list<std::string> words) {
        INFO(json);
        const std::string error = error_of([&] { grid_of(json); });
        CHECK(mentions(error, words));
        CHECK(mentions(error, {"grid.json"}));
    };
    check(R"({"bits": [2]})", {"unknown key \"bits\"", "qat_frac"});
    check("{\"b\\n\": 2}", {"unknown key \"b\\n\""});
    check(R"({"b": []})", {"\"b\"", "no values"});
    check(R"({"b": [2, 4, 2]})", {"\"b\"", "2 twice"});
    check(R"({"n": ["1.5M", 1500000]})", {"\"n\"", "1500000 twice"});
    check(R"({"qat_frac": [0.1, ".10"]})", {"\"qat_frac\"", ".10 twice"});
    check(R"({"lr": [0, -0.0]})", {"\"lr\"", "twice"});
    check(R"({"b": [2], "b": [4]})", {"key \"b\" twice"});
    check(R"({"b": true})", {"\"b\"", "true", "number"});
    check(R"({"b": [null]})", {"\"b\"", "null"});
    check(R"({"b": [[2]]})", {"\"b\"", "[2]"});
    check(R"({"b": {"of": 2}})", {"\"b\"", "{\"of\":2}"});
    check(R"({"seed": [1, 1e999]})", {"grid.json", "number too large"});
    check(R"({"cooldown": 1})", {"\"cooldown\"", "1", "text"});
    check(R"({"cooldown": "cold"})", {"\"cooldown\"", "cold", "fused"});
    check(R"({"n": "5X"})", {"\"n\"", "5X"});
    check(R"({"tokens": -5})", {"\"tokens\"", "-5"});
    check(R"({"seed": 1.5})", {"\"seed\"", "1.5", "whole"});
    check(R"({"seed": -1})", {"\"seed\"", "-1"});
    check(R"({"qat_frac": "automatic"})", {"\"qat_frac\"", "automatic", "auto"});
    check(R"({"lr": "1e-3x"})", {"\"lr\"", "1e-3x"});
    check(R"({"lr": "nan"})", {"\"lr\"", "nan"});
    check(R"({"lr": ""})", {"\"lr\""});
    check(R"({"b": [2, })", {"JSON", "byte"});
    check("", {"JSON"});
    check("[1]", {"object"});
    std::string many = "[0";
    for (int i = 1; i < 400; ++i) many += "," + std::to_string(i);
    check(R"({"seed": )" + many + R"(], "lr": )" + many + "]}", {"100000", "runs"});
    CHECK(mentions(error_of([] { read_sweep_grid("/nonexistent/grid.json"); }), {"/nonexistent/grid.json"}));
}

TEST_CASE("flags of a run replace those of the command line in every spelling", "[sweep_grid]") {
    const Words flags = {"-b", "2", "-lr", "0.5"};
    const Words expected = {"-n", "5M", "-resume", "-b", "2", "-lr", "0.5"};
    for (const Words& base : {Words{"-n", "5M", "-resume"}, Words{"-b", "4", "-n", "5M", "-lr=3", "-resume"},
                              Words{"--lr=-1", "-n", "5M", "-b=4", "-resume"},
                              Words{"-n", "5M", "--b", "4", "-resume", "--lr", "-1e-3"},
                              Words{"-n", "5M", "-b", "4", "--b=5", "-resume"}}) {
        CHECK(with_flags(base, flags) == expected);
        const auto options = parse_command_line(with_flags(base, flags));
        REQUIRE(options);
        CHECK(options->bits == 2);
        CHECK(options->plan.learning_rate == 0.5);
        CHECK(options->resume);
    }
    // Other flags that begin alike stay, and so do values that look like names.
    CHECK(with_flags({"-batch", "3", "-beta1=0.5", "-o", "b", "-prompt=-b"}, flags) ==
          Words{"-batch", "3", "-beta1=0.5", "-o", "b", "-prompt=-b", "-b", "2", "-lr", "0.5"});
    // A flag without its value stays to be refused.
    CHECK(mentions(error_of([&] { parse_command_line(with_flags({"-b", "-resume"}, flags)); }), {"-b"}));
    CHECK(mentions(error_of([&] { parse_command_line(with_flags({"-resume", "-b"}, flags)); }), {"-b"}));
}
