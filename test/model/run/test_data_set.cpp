// The data set that a run takes when none is named.
#include "model/run/data_set.h"

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr const char* whole =
    R"({"train": "x_train_*.bin", "validation": "x_val_*.bin", "tokenizer": "x.model"})";

DataFiles data_with(const std::string& record, const Options& options = {}) {
    return with_prepared_data(options, record).data;
}

}  // namespace

TEST_CASE("without -i a run takes what was prepared last", "[data_set]") {
    const TemporaryDirectory directory;
    const std::string record = directory.write("latest.json", whole);
    DataFiles data = data_with(record);
    CHECK(data.training == directory / "x_train_*.bin");
    CHECK(data.validation == directory / "x_val_*.bin");
    CHECK(data.tokenizer == directory / "x.model");
    for (const std::string& path : {data.training, data.validation, data.tokenizer})
        CHECK(describe_prepared_data(data).find(path) != std::string::npos);
    CHECK(mentions(describe_prepared_data(data), {"prepared last", "-i"}));

    directory.write("latest.json",
                    R"({"train": "/data/x_train_*.bin", "validation": null, "tokenizer": null})");
    data = data_with(record);
    CHECK(data.training == "/data/x_train_*.bin");
    CHECK(data.validation.empty());
    CHECK(data.tokenizer.empty());
    CHECK(mentions(describe_prepared_data(data), {"validation none", "tokenizer none"}));
}

TEST_CASE("what the command line names is not replaced", "[data_set]") {
    const TemporaryDirectory directory;
    const std::string record = directory.write("latest.json", whole);
    Options options;
    options.data.validation = "own_val.bin";
    CHECK(data_with(record, options).validation == "own_val.bin");
    CHECK(data_with(record, options).tokenizer == directory / "x.model");
    // -i alone: nothing is guessed.
    options = {};
    options.data.training = "own.bin";
    const DataFiles data = data_with(record, options);
    CHECK(data.training == "own.bin");
    CHECK(data.validation.empty());
    CHECK(data.tokenizer.empty());
}

TEST_CASE("without any data one line says how to prepare some", "[data_set]") {
    const TemporaryDirectory directory;
    Options options;
    const std::string absent = directory / "latest.json";
    const std::string error = error_of([&] { with_prepared_data(options, absent); });
    CHECK(mentions(error, {"-i", "latest.json", "make quickstart", "data/prepare.py"}));
    CHECK(error.find('\n') == std::string::npos);
    options.plan_only = true;
    CHECK(data_with(absent, options).training.empty());
    CHECK(vocabulary_of(options) == 32000);
}

TEST_CASE("a damaged record of prepared data is named", "[data_set]") {
    const TemporaryDirectory directory;
    for (const char* text : {"", "[]", "{}", R"({"train": 1})", R"({"train": "x"})",
                             R"({"train": null, "validation": null, "tokenizer": null})"}) {
        INFO(text);
        const std::string record = directory.write("latest.json", text);
        CHECK(mentions(error_of([&] { data_with(record); }), {"latest.json", "-i"}));
    }
}
