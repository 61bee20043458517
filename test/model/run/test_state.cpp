// What a run records of itself, and the guard that stops it: settings, results, throughput, numbers that go
// wrong.
#include "model/run/run_state.h"

#include <cmath>
#include <limits>

#include "model/run/guard.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr uint64_t fingerprint = 0xfedcba9876543210ull;  // no double holds it exactly

Options some_options() {
    Options options;
    options.bits = 1.58;
    options.batch = 3;
    options.gradient_accumulation = 5;
    options.group = 32;
    options.seed = UINT64_MAX - 1;
    options.optimizer.epsilon = 1.0 / 3.0;
    return options;
}

ModelConfig some_config() {
    ConfigOverrides shape;
    shape.layers = 2, shape.width = 32, shape.heads = 2, shape.ffn = 64;
    return resolve_config("", 61, 16, shape);
}

Plan some_plan(double bits = 1.58, double fraction = 0.4) {
    PlanRequest request;
    request.parameters = parameter_count(some_config());
    request.bits = bits;
    request.qat_fraction = fraction;
    request.steps = 30;
    request.tokens_per_step = 240;
    request.learning_rate = 1e-3 / 3.0;
    return make_plan(request);
}

nlohmann::ordered_json some_settings() {
    return run_settings(some_options(), some_config(), some_plan(), DType::bfloat16);
}

RunState some_state() {
    RunState state;
    state.quantized = true;
    state.optimizer_steps = 20;
    state.scale_steps = 2;
    state.loader_position = (int64_t{1} << 60) + 1;
    state.results.full_precision = 10.0 / 3.0;
    state.results.rounded = 1e-17;
    return state;
}

// As a checkpoint's manifest keeps it.
nlohmann::json through_text(const nlohmann::json& value) {
    return nlohmann::json::parse(value.dump(2));
}

std::string resume_error(const nlohmann::json& saved, const nlohmann::ordered_json& settings,
                         uint64_t data = fingerprint) {
    return error_of([&] { read_run_state(saved, settings, data); });
}

std::string guard_error(RunGuard& guard, int64_t step, double loss, double norm,
                        const std::string& offender = "") {
    return error_of([&] { guard.check(step, {&loss, 1}, norm, offender); });
}

}  // namespace

TEST_CASE("the state of a run survives its text bit by bit", "[run_state]") {
    const RunState state = some_state();
    const nlohmann::json saved = through_text(to_json(state, some_settings(), fingerprint));
    const RunState loaded = read_run_state(saved, some_settings(), fingerprint);
    CHECK(loaded.quantized);
    CHECK(loaded.optimizer_steps == 20);
    CHECK(loaded.scale_steps == 2);
    CHECK(loaded.loader_position == state.loader_position);
    CHECK(loaded.results.full_precision == state.results.full_precision);
    CHECK(loaded.results.rounded == state.results.rounded);
    CHECK_FALSE(loaded.results.quantized);
    const RunState fresh = read_run_state(through_text(to_json({}, some_settings(), 0)), some_settings(), 0);
    CHECK_FALSE(fresh.quantized);
    CHECK_FALSE(fresh.results.full_precision);
    CHECK_FALSE(fresh.results.rounded);
}

TEST_CASE("settings hold what the numbers of a run depend on", "[run_state]") {
    const nlohmann::ordered_json settings = some_settings();
    CHECK(settings["layers"] == 2);
    CHECK(settings["width"] == 32);
    CHECK(settings["kv_heads"] == 2);
    CHECK(settings["vocab"] == 61);
    CHECK(settings["seq_len"] == 16);
    CHECK(settings["b"] == 1.58);
    CHECK(settings["group"] == 32);
    CHECK(settings["steps"] == 30);
    CHECK(settings["fp_steps"] == 18);
    CHECK(settings["qat_steps"] == 12);
    CHECK(settings["total_batch"] == 3 * 5);
    CHECK(settings["cooldown"] == "classic");
    CHECK(settings["lr"] == 1e-3 / 3.0);
    CHECK(settings["seed"] == UINT64_MAX - 1);
    CHECK(settings["dtype"] == "bfloat16");
    CHECK_FALSE(settings.contains("threads"));     // results do not depend on them
    CHECK_FALSE(settings.contains("save_every"));  // nor on these
    CHECK_FALSE(settings.contains("keep"));
}

TEST_CASE("a resume with another setting is refused by the setting's name", "[run_state]") {
    const nlohmann::ordered_json settings = some_settings();
    const nlohmann::json saved = through_text(to_json(some_state(), settings, fingerprint));
    REQUIRE(resume_error(saved, settings).empty());
    for (const auto& [key, value] : settings.items()) {
        nlohmann::ordered_json changed = settings;
        if (value.is_string())
            changed[key] = "another";
        else if (value.is_number_float())
            changed[key] = value.get<double>() * (1 + 1e-15) + 1e-300;  // the least that JSON must keep
        else
            changed[key] = value.get<int64_t>() + 1;
        CHECK(mentions(resume_error(saved, changed), {"-resume", "trained with " + key + " " + value.dump(),
                                                      "this run has " + changed[key].dump(),
                                                      key == "total_batch" ? "give -total_batch 15" : "-o"}));
        nlohmann::json older = saved;  // of a version that did not know the setting
        older["settings"].erase(key);
        CHECK(mentions(resume_error(older, settings), {"-resume", "trained with " + key + " null"}));
    }
    CHECK(mentions(resume_error(saved, settings, fingerprint + 1), {"-resume", "shards", "-i", "order"}));
    CHECK(mentions(resume_error(saved, settings, 0), {"-i"}));
}

TEST_CASE("the flag that the user gave is named before what follows from it", "[run_state]") {
    const auto settings_of = [](double fraction) {
        return run_settings(some_options(), some_config(), some_plan(1.58, fraction), DType::float32);
    };
    const nlohmann::json saved = through_text(to_json(some_state(), settings_of(0.4), fingerprint));
    CHECK(mentions(resume_error(saved, settings_of(0.5)), {"trained with qat_frac 0.4", "this run has 0.5"}));
}

TEST_CASE("a total batch is divided among ranks and micro-batches", "[run_state]") {
    Options options;
    options.batch = 8;
    options.gradient_accumulation = 3;
    RunLayout layout = run_layout(options, 4);
    CHECK(layout.batch == 8);
    CHECK(layout.gradient_accumulation == 3);
    CHECK(layout.step_sequences() == 96);
    options.gradient_accumulation = 1;
    for (int64_t total : {1, 2, 7, 12, 48, 60, 96, 1000})
        for (int ranks : {1, 2, 3, 4, 5, 12}) {
            options.total_batch = total;
            INFO(total << " on " << ranks);
            if (total % ranks != 0) {
                CHECK(mentions(error_of([&] { run_layout(options, ranks); }), {"-total_batch", "ranks"}));
                continue;
            }
            layout = run_layout(options, ranks);
            CHECK(layout.step_sequences() == total);
            CHECK(layout.batch <= 8);
            for (int64_t larger = layout.batch + 1; larger <= 8; ++larger)
                CHECK((total / ranks) % larger != 0);
        }
}

TEST_CASE("run.json holds settings, results and where they are from", "[run_state]") {
    RunResults results = some_state().results;
    results.qat_tokens_per_second = 1234.5;
    results.sample = "Once \xff";
    const nlohmann::ordered_json record =
        run_record(some_settings(), {4, 0, 3, 5}, some_plan(), results, "a processor");
    CHECK(record["configuration"] == some_settings());
    CHECK(record["plan"]["bits"] == some_plan().bits);
    CHECK(record["plan"]["fp_steps"] == some_plan().fp_steps);
    CHECK(record["plan"]["qat_fraction"] == some_plan().qat_fraction);
    CHECK(record["device"] == "a processor");
    CHECK(record["compiler"] == __VERSION__);
    CHECK(record["results"]["full_precision_at_switch"] == 10.0 / 3.0);
    CHECK(record["results"]["rounded_at_switch"] == 1e-17);
    CHECK(record["results"]["quantized"].is_null());
    CHECK(record["results"]["tokens_per_second_fp"] == 0);
    CHECK(record["results"]["tokens_per_second_qat"] == 1234.5);
    CHECK(record["results"]["sample"] == "Once \xff");
}

TEST_CASE("the closing table shows what is known", "[run_state]") {
    RunResults results;
    results.full_precision = 3.25;
    results.rounded = 4.125;
    results.quantized = 3.3125;
    results.fp_tokens_per_second = 6400.4;
    results.qat_tokens_per_second = 6300;
    results.sample = "Once upon";
    const std::string all = results_table(results, some_plan(1, 0.4));
    for (const char* part : {"validation loss", "full precision, at the switch", "3.2500",
                             "rounded to 1 bit (no QAT)", "4.1250", "quantization-aware trained, 1 bit ",
                             "3.3125", "6400 tokens/s", "6300 tokens/s", "\nsample\nOnce upon\n"})
        CHECK_THAT(all, contains_text(part));
    CHECK_THAT(results_table(results, some_plan(1.58)), contains_text("1.58 bits"));

    RunResults few;
    few.qat_tokens_per_second = 100;
    const std::string little = results_table(few, some_plan());
    for (const char* part : {"validation loss", "full", "sample"})
        CHECK(little.find(part) == std::string::npos);
    few.full_precision = 2;
    const std::string without_switch = results_table(few, some_plan(4, 0));
    CHECK_THAT(without_switch, contains_text("full precision  "));
    CHECK(without_switch.find("switch") == std::string::npos);
}

TEST_CASE("the throughput of a phase leaves its first step out when there are more", "[run_state]") {
    PhaseTime time;
    CHECK(time.tokens_per_second() == 0);
    time.add(100, 50);
    CHECK(time.tokens_per_second() == 2);
    time.add(100, 1);
    CHECK(time.tokens_per_second() == 100);
    time.add(100, 3);
    CHECK(time.tokens_per_second() == 50);
}

TEST_CASE("the guard lets healthy numbers pass", "[run_guard]") {
    RunGuard guard(61);
    for (int64_t step = 1; step <= 500; ++step) CHECK(guard_error(guard, step, 4.1, 1e30).empty());
    CHECK(guard_error(guard, 501, 0, 0).empty());
}

TEST_CASE("the guard stops at numbers that are not finite", "[run_guard]") {
    RunGuard guard(61);
    CHECK(mentions(guard_error(guard, 7, not_a_number, 1.0),
                   {"step 7: ", "the loss is ", "nan", "no checkpoint yet", "-lr"}));
    CHECK(mentions(guard_error(guard, 8, infinity, 1.0, "model.norm.weight"),
                   {"step 8: ", "the loss is inf", "first bad gradient: model.norm.weight"}));
    CHECK(guard_error(guard, 9, infinity, 1.0).find("gradient") == std::string::npos);
    CHECK(mentions(guard_error(guard, 10, 4.0, not_a_number, "model.layers.0.mlp.up_proj.weight"),
                   {"step 10: ", "gradient norm", "first bad gradient: model.layers.0.mlp.up_proj.weight"}));
    CHECK(mentions(guard_error(guard, 11, 4.0, infinity),
                   {"step 11: ", "gradient norm", "their sum overflows"}));
    guard.set_last_checkpoint("out/step_00000003");
    guard.set_last_checkpoint("out/step_00000006");
    const std::string error = guard_error(guard, 12, 4.0, not_a_number, "x");
    CHECK(
        mentions(error, {"the last good checkpoint is out/step_00000006", "nothing of this step was kept"}));
    CHECK(error.find("no checkpoint yet") == std::string::npos);
}

TEST_CASE("the guard stops a loss that stays far above that of guessing", "[run_guard]") {
    constexpr int64_t patience = 50;
    const double threshold = 2.0 * std::log(61.0) + 1.0;  // 9.22
    {
        RunGuard guard(61);
        for (int64_t step = 1; step < patience; ++step)
            CHECK(guard_error(guard, step, threshold + 0.01, 1).empty());
        CHECK(mentions(guard_error(guard, patience, threshold + 0.01, 1),
                       {"step 50: ", "diverges", "50 steps"}));
    }
    {
        RunGuard guard(61);  // one step that is below starts the count again
        for (int64_t step = 1; step <= 1000; ++step)
            CHECK(guard_error(guard, step, step % patience == 0 ? threshold - 0.01 : 1e6, 1).empty());
    }
    RunGuard guard(61);
    for (int64_t step = 1; step <= 200; ++step) CHECK(guard_error(guard, step, threshold - 0.01, 1).empty());
}
