// -init_from: sizes and weights of a folder of another program.
#include "model/job/data_set.h"
#include "model/job/run_plan.h"
#include "model/job/settings.h"
#include "model/run/state.h"
#include "test/support/catch.h"
#include "test/support/command_line.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/hugging_face_folder.h"
#include "test/support/run_fixture.h"
#include "test/support/shards.h"
#include "test/support/tiny_model.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

nlohmann::json recorded_with(const Options& options) {
    return recorded(settings_of({{1, 1, 3, 5}, some_config(), some_plan()}, options));
}

}  // namespace

TEST_CASE("the model's sizes are those of the folder", "[initial_model]") {
    const TemporaryDirectory directory;
    const std::string folder = write_folder(directory, "model", folder_config(tiny_config()),
                                            folder_tensors(tiny_config(), "BF16", 1));
    const RunPlan run = plan_run(parse("-b 4 -qat_frac 0.5 -seq_len 7 -steps 5 -init_from " + folder), 2);
    CHECK(run.config.width == 24);
    CHECK(run.config.head_dim == 6);
    CHECK(run.config.vocabulary == 53);
    CHECK(run.config.sequence_length == 7);
    CHECK(run.plan.parameters == parameter_count(tiny_config()));
    CHECK(describe(run).find(folder) != std::string::npos);
    CHECK(mentions(error_of([&] { plan_run(parse("-steps 5 -seq_len 19 -init_from " + folder), 1); }),
                   {"-seq_len 19", "max_position_embeddings 18"}));
    CHECK(
        mentions(error_of([] { plan_run(parse("-init_from /nowhere/x"), 1); }), {"/nowhere/x/config.json"}));
}

TEST_CASE("data may have fewer tokens than the folder's model and not more", "[initial_model]") {
    const TemporaryDirectory directory;
    const std::string folder = write_folder(directory, "model", folder_config(tiny_config()),
                                            folder_tensors(tiny_config(), "BF16", 1));
    const auto error_with = [&](uint32_t vocabulary) {
        const std::string name = "v" + std::to_string(vocabulary) + ".bin";
        write_shard(directory / name, std::vector<uint32_t>(20, 0), vocabulary, 0);
        return error_of(
            [&] { model_config(parse("-seq_len 4 -init_from " + folder + " -i " + directory / name)); });
    };
    for (const uint32_t vocabulary : {0u, 30u, 53u}) CHECK(error_with(vocabulary) == "");
    CHECK(mentions(error_with(54), {"-init_from", "53 tokens", "54", "prepare.py --tokenizer"}));
}

TEST_CASE("what the folder says is not for flags to say", "[initial_model]") {
    for (const char* flag : {"-n 1M", "-n auto", "-layers 2", "-width 24", "-heads 4", "-head_dim 6",
                             "-kv_heads 2", "-ffn 40", "-untied", "-vocab 53"}) {
        const std::string name = std::string(flag).substr(0, std::string(flag).find(' '));
        CHECK(
            mentions(parse_error("-init_from x " + std::string(flag)), {(name + ":").c_str(), "-init_from"}));
    }
    CHECK(mentions(parse_error("-init_from x -law y"), {"-law:", "-init_from"}));
    CHECK(mentions(parse_error("-init_from x -b auto"), {"-b auto:", "a number of bits"}));
    CHECK(mentions(parse_error("-init_from x -flops 1e15"), {"-flops:", "-tokens"}));
    CHECK(mentions(parse_error("-init_from x -eval_only -e y"), {"-init_from:", "-e"}));
    CHECK(parse("-init_from x -seq_len 9 -b 2 -qat_frac 1 -resume").initial_model == "x");
    CHECK_FALSE(parse("-init_from x").bits_given);
    CHECK(parse("-eval_only -e x -b 4").bits_given);
}

TEST_CASE("runs that begin with other weights are not mixed", "[initial_model]") {
    const TemporaryDirectory directory;
    const auto folder = [&](const std::string& name, uint32_t seed) {
        return write_folder(directory, name, folder_config(tiny_config()),
                            folder_tensors(tiny_config(), "F32", seed));
    };
    Options options = some_options();
    CHECK(recorded_with(options)["init_from"].is_null());
    options.initial_model = folder("first", 1);
    const nlohmann::json first = recorded_with(options)["init_from"];
    CHECK(first.get<std::string>().size() == 16);
    const RunSettings settings = settings_of({{1, 1, 3, 5}, some_config(), some_plan()}, options);
    const nlohmann::json saved = to_json(some_state(), settings, 7);
    CHECK_NOTHROW(read_run_state(saved, settings, 7));
    options.initial_model = folder("moved", 1);
    CHECK(recorded_with(options)["init_from"] == first);
    options.initial_model = folder("second", 2);
    CHECK(recorded_with(options)["init_from"] != first);
    const RunSettings others = settings_of({{1, 1, 3, 5}, some_config(), some_plan()}, options);
    CHECK(mentions(error_of([&] { read_run_state(saved, others, 7); }), {"-resume", "init_from"}));
    CHECK(mentions(error_of([&] { read_run_state(saved, some_settings(), 7); }),
                   {"-resume", "init_from", "null"}));
    // -dtype auto is the device's choice: the flags of the first run, once more, are no help on another.
    nlohmann::json elsewhere = saved;
    const bool float32 = elsewhere["settings"]["dtype"] == "float32";
    elsewhere["settings"]["dtype"] = float32 ? "bfloat16" : "float32";
    CHECK(mentions(error_of([&] { read_run_state(elsewhere, settings, 7); }),
                   {"-resume", "dtype", float32 ? "give -dtype bf16" : "give -dtype fp32"}));
    // Checkpoints that are older than the setting began with new weights.
    nlohmann::json older = to_json(some_state(), some_settings(), 7);
    older["settings"].erase("init_from");
    CHECK_NOTHROW(read_run_state(older, some_settings(), 7));
    CHECK(mentions(error_of([&] { read_run_state(older, settings, 7); }), {"-resume", "init_from", "null"}));
}
