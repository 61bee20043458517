// What a checkpoint keeps of a run, and what a resume is refused for.
#include "model/run/state.h"

#include <set>

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/run_fixture.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr uint64_t fingerprint = 0xfedcba9876543210ull;  // no double holds it exactly

// As a checkpoint's manifest keeps it.
nlohmann::json through_text(const nlohmann::json& value) {
    return nlohmann::json::parse(value.dump(2));
}

std::string resume_error(const nlohmann::json& saved, const RunSettings& settings,
                         uint64_t data = fingerprint) {
    return error_of([&] { read_run_state(saved, settings, data); });
}

}  // namespace

TEST_CASE("the state of a run survives its text bit by bit", "[state]") {
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

TEST_CASE("a resume with another setting is refused by the setting's name", "[state]") {
    const RunSettings settings = some_settings();
    const nlohmann::json saved = through_text(to_json(some_state(), settings, fingerprint));
    REQUIRE(resume_error(saved, settings).empty());
    for (size_t i = 0; i < settings.size(); ++i) {
        const auto& [flag, value, role] = settings[i];
        RunSettings changed = settings;
        if (value.is_string())
            changed[i].value = "another";
        else if (value.is_number_float())
            changed[i].value = value.get<double>() * (1 + 1e-15) + 1e-300;  // the least that JSON must keep
        else if (value.is_boolean())
            changed[i].value = !value.get<bool>();
        else if (value.is_null())
            changed[i].value = {{"factor", 8.0}};
        else
            changed[i].value = value.get<int64_t>() + 1;
        if (!recorded(settings).contains(flag)) {  // changes at most last places
            CHECK(resume_error(saved, changed).empty());
            continue;
        }
        CHECK(mentions(resume_error(saved, changed), {"-resume", "trained with " + flag + " " + value.dump(),
                                                      "this run has " + changed[i].value.dump(),
                                                      flag == "total_batch" ? "give -total_batch 15"
                                                      : flag == "dtype"     ? "give -dtype bf16"
                                                      : flag == "init_from" ? "leave -init_from out"
                                                                            : "-o"}));
        nlohmann::json older = saved;  // of a version that did not know the setting
        older["settings"].erase(flag);
        // What had one value only then: logits were float32, models tied, without biases, weights new, ...
        const bool had_one =
            std::set<std::string>{"logits",     "head_dim",     "tied",     "attention_biases", "head_norms",
                                  "rope_theta", "rope_scaling", "norm_eps", "init_from"}
                .count(flag) > 0;
        if (had_one)
            CHECK(resume_error(older, settings).empty());
        else
            CHECK(mentions(resume_error(older, settings), {"-resume", "trained with " + flag + " null"}));
    }
    CHECK(mentions(resume_error(saved, settings, fingerprint + 1), {"-resume", "shards", "-i", "order"}));
    CHECK(mentions(resume_error(saved, settings, 0), {"-i"}));
}

TEST_CASE("the flag that the user gave is named before what follows from it", "[state]") {
    const auto with_fraction = [](double fraction) {
        return settings_of({{1, 1, 3, 5}, some_config(), some_plan(1.58, fraction)});
    };
    const nlohmann::json saved = through_text(to_json(some_state(), with_fraction(0.4), fingerprint));
    CHECK(
        mentions(resume_error(saved, with_fraction(0.5)), {"trained with qat_frac 0.4", "this run has 0.5"}));
}
