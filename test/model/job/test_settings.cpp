// The table of settings, what its roles stand for, and how work is divided.
#include "model/job/settings.h"

#include <limits>
#include <set>
#include <sstream>

#include "model/job/layout.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/run_fixture.h"
#include "test/support/thread_communicator.h"

using namespace train_qat;
using namespace train_qat::test;

TEST_CASE("settings hold what the numbers of a run depend on", "[settings]") {
    const nlohmann::ordered_json settings = recorded(some_settings());
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

TEST_CASE("run.json and checkpoints keep all that a step's mathematics needs, in this order", "[settings]") {
    const nlohmann::ordered_json settings = recorded(some_settings());
    std::string keys;
    for (const auto& [key, value] : settings.items()) keys += key + " ";
    CHECK(
        keys ==
        "layers width heads head_dim kv_heads ffn vocab seq_len tied attention_biases head_norms rope_theta "
        "rope_scaling norm_eps init_from b group steps qat_frac fp_steps qat_steps "
        "total_batch schedule cooldown warmup_steps cooldown_steps qat_warmup_steps qat_cooldown_steps lr "
        "qat_lr final_lr_frac scale_lr beta1 beta2 eps weight_decay clip seed dtype logits master ");
}

TEST_CASE("the rows of logits in use are part of the layout", "[settings]") {
    const auto logit_rows = [](int64_t asked, int64_t batch) {
        Options options = some_options();
        options.logit_rows = asked;
        const RunSettings settings = settings_of({{1, 1, batch, 5}, some_config(), some_plan()}, options);
        CHECK_FALSE(recorded(settings).contains("logit_rows"));  // a resumed run may have others
        return with_roles(settings, layout_roles)["logit_rows"].get<int64_t>();
    };
    const int64_t T = some_config().sequence_length;
    CHECK(logit_rows(0, 3) == 3 * T);
    CHECK(logit_rows(0, 1000) == 512);  // a CPU's
    CHECK(logit_rows(7, 3) == 7);
    CHECK(logit_rows(1'000'000, 3) == 3 * T);
}

TEST_CASE("logits have the dtype that was asked for, where activations have it too", "[settings]") {
    const RunPlan run{{1, 1, 1000, 5}, some_config(), some_plan()};
    Options options = some_options();
    CHECK(recorded(settings_of(run, options))["logits"] == "float32");
    CHECK(recorded(settings_of(run, options, DType::float32))["logits"] == "float32");
    options.logits = "bf16";
    options.logit_rows = 7;
    const RunSettings settings = settings_of(run, options);
    CHECK(recorded(settings)["logits"] == "bfloat16");
    CHECK(with_roles(settings, layout_roles)["logit_rows"] == 7);
    CHECK(mentions(error_of([&] { settings_of(run, options, DType::float32); }),
                   {"-logits bf16:", "-logits fp32"}));
}

TEST_CASE("trunks leave out what only quantization-aware steps depend on", "[settings]") {
    const nlohmann::ordered_json trunk = with_roles(some_settings(), trunk_roles);
    const nlohmann::ordered_json settings = recorded(some_settings());
    for (const auto& [key, value] : settings.items()) {
        const std::set<std::string> others = {
            "b",         "group",         "steps",    "qat_frac",         "fp_steps",
            "qat_steps", "schedule",      "cooldown", "warmup_steps",     "cooldown_steps",
            "qat_lr",    "final_lr_frac", "scale_lr", "qat_warmup_steps", "qat_cooldown_steps"};
        INFO(key);
        CHECK(trunk.contains(key) == !others.contains(key));
    }
}

TEST_CASE("a job of a sweep is told apart by all that changes its bits", "[settings]") {
    const nlohmann::ordered_json job = with_roles(some_settings(), job_roles);
    for (const char* key :
         {"ranks", "batch", "grad_accum", "logit_rows", "device", "gemm", "qat_gemm", "attention", "dtype",
          "logits", "master", "group", "scale_lr", "seed", "total_batch", "val_every", "val_sequences"})
        CHECK(job.contains(key));
    CHECK_FALSE(job.contains("zero"));  // the same bits either way
    CHECK_FALSE(job.contains("b"));     // the plan's, of which trunks are independent
    CHECK(job["device"] == "cpu");
}

TEST_CASE("ranks with any other setting or data are found", "[settings]") {
    const auto error_with = [](const RunSettings& of_rank_1, DataFingerprints data_of_rank_1) {
        std::vector<std::string> errors(2);
        run_ranks(2, [&](Communicator& communicator) {
            const bool first = communicator.rank() == 0;
            errors[communicator.rank()] = error_of([&] {
                check_ranks_agree(communicator, first ? some_settings() : of_rank_1,
                                  first ? DataFingerprints{1, 2} : data_of_rank_1);
            });
        });
        CHECK(errors[0] == errors[1]);
        return errors[0];
    };
    CHECK(error_with(some_settings(), {1, 2}).empty());
    CHECK(mentions(error_with(some_settings(), {3, 2}), {"rank 1", "-i"}));
    CHECK(mentions(error_with(some_settings(), {1, 3}), {"rank 1", "-j"}));
    for (size_t i = 0; i < some_settings().size(); ++i) {
        RunSettings changed = some_settings();
        changed[i].value = "another";
        CHECK(mentions(error_with(changed, {1, 2}), {"rank 1 has other settings than rank 0"}));
    }
}

TEST_CASE("a total batch is divided among ranks and micro-batches", "[settings]") {
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
