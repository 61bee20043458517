#include "model/job/data_set.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/patterns.h"
#include "data/shard.h"
#include "data/shared_text.h"
#include "data/tokenizer.h"
#include "model/storage/files.h"

namespace train_qat {

namespace {

// The path or pattern under `key`, as seen from here; empty: none.
std::string entry_of(const std::string& record, const nlohmann::json& json, const char* key) {
    if (!json.is_object() || !json.contains(key) || !(json[key].is_string() || json[key].is_null()))
        throw_file_error(record, "is no record of prepared data (\"" + std::string(key) +
                                     "\"); prepare some again with data/prepare.py, or give -i");
    if (json[key].is_null()) return "";
    return (std::filesystem::path(record).parent_path() / json[key].get<std::string>()).string();
}

LoaderOptions loader_options(const Options& options, const ModelConfig& config) {
    LoaderOptions loader;
    loader.sequence_length = config.sequence_length;
    loader.seed = options.seed;
    loader.vocabulary_size = static_cast<uint32_t>(config.vocabulary);
    if (!options.data.tokenizer.empty())
        loader.expected_tokenizer_hash = tokenizer_hash(options.data.tokenizer);
    return loader;
}

void check_text(const std::string& flag, const std::string& text) {
    if (!is_utf8(text)) throw std::runtime_error(flag + ": is no valid UTF-8; give the text in UTF-8");
}

// Of the training shards, which there are; 0: they do not say it.
uint32_t vocabulary_of_shards(const Options& options) {
    return Shard(expand_patterns(options.data.training).front()).vocabulary_size();
}

}  // namespace

Options with_prepared_data(const Options& options, const std::string& record) {
    if (!options.data.training.empty() || options.sample) return options;
    if (options.plan_only && options.vocabulary) return options;  // a plan for data of another vocabulary
    if (options.evaluate_only && !(options.data.validation.empty() && options.hellaswag.empty()))
        return options;
    if (!std::filesystem::exists(record)) {
        if (options.plan_only) return options;
        if (options.evaluate_only)
            throw std::runtime_error(
                "-eval_only: name the shards to measure with -j; none were prepared here (" + record +
                " is not there)");
        throw std::runtime_error(
            "-i: no training shards are given and none were prepared here (" + record +
            " is not there): `make quickstart` prepares a small set, `data/prepare.py TEXT -o "
            "data/cache/NAME` one of your own text");
    }
    const nlohmann::json json = nlohmann::json::parse(read_text_file(record), nullptr, false);
    Options completed = options;
    DataFiles& data = completed.data;
    data.training = entry_of(record, json, "train");
    if (data.training.empty()) throw_file_error(record, "names no training shards; give -i");
    if (data.validation.empty()) data.validation = entry_of(record, json, "validation");
    if (data.tokenizer.empty()) data.tokenizer = entry_of(record, json, "tokenizer");
    return completed;
}

void check_data(const Options& options) {
    const DataFiles& data = options.data;
    check_text("-prompt", options.prompt);
    check_text("-sample", options.sample.value_or(""));
    if (!options.prompt.empty() && data.tokenizer.empty())
        throw std::runtime_error("-prompt: has no tokenizer; name that of the shards with -tokenizer");
    if (data.training.empty() || data.validation.empty() || options.evaluate_only || options.plan_only)
        return;
    const auto shared =
        find_shared_text(expand_patterns(data.validation), expand_patterns(data.training), options.threads);
    if (!shared) return;
    const auto& [validation, training] = *shared;
    throw std::runtime_error(
        "-j " + validation + ": its text is also in " + (training == validation ? "" : training + " of ") +
        "-i, and a loss on what was trained on says nothing; give -i training shards alone, such as "
        "'x_train_*.bin', or other shards to -j");
}

std::string describe_prepared_data(const DataFiles& data) {
    return "data: " + data.training + " (prepared last; -i names others), validation " +
           (data.validation.empty() ? "none" : data.validation) + ", tokenizer " +
           (data.tokenizer.empty() ? "none" : data.tokenizer);
}

int64_t vocabulary_of(const Options& options) {
    if (options.vocabulary) return *options.vocabulary;
    constexpr int64_t default_vocabulary = 32000;
    if (options.data.training.empty()) return default_vocabulary;
    const uint32_t of_shards = vocabulary_of_shards(options);
    if (of_shards == 0)
        throw std::runtime_error("-vocab: the shards of -i do not say their vocabulary; give it with -vocab");
    return of_shards;
}

void check_vocabulary(const Options& options, const ModelConfig& config) {
    if (options.data.training.empty() || vocabulary_of_shards(options) <= config.vocabulary) return;
    throw std::runtime_error("-init_from " + options.initial_model + ": knows " +
                             std::to_string(config.vocabulary) + " tokens, the shards of -i were made with " +
                             std::to_string(vocabulary_of_shards(options)) +
                             "; prepare them with the folder's tokenizer (data/prepare.py --tokenizer)");
}

LoaderOptions training_loader(const Options& options, const ModelConfig& config, int rank, int ranks) {
    LoaderOptions loader = loader_options(options, config);
    loader.rank = rank;
    loader.world_size = ranks;
    return loader;
}

LoaderOptions validation_loader(const Options& options, const ModelConfig& config) {
    LoaderOptions loader = loader_options(options, config);
    loader.shuffle = false;
    return loader;
}

}  // namespace train_qat
