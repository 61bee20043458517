#include "model/import/hugging_face_weights.h"

#include <filesystem>
#include <functional>
#include <limits>
#include <vector>

#include "model/transformer.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/hugging_face_folder.h"
#include "test/support/tensor_set.h"
#include "test/support/thread_communicator.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Heads that are wider together than the model, one of them for keys; tensors of more than one row a rank.
ModelConfig odd_config() {
    ModelConfig config;
    config.layers = 2;
    config.width = 14;
    config.heads = 3;
    config.kv_heads = 1;
    config.head_dim = 6;
    config.ffn = 11;
    config.vocabulary = 37;
    config.sequence_length = 5;
    config.tied = false;
    return config;
}

// {parameter: numbers of the rows that this rank keeps}, of a vector all.
std::map<std::string, std::vector<double>> masters(Backend& backend, const Parameters& parameters) {
    std::map<std::string, std::vector<double>> found;
    for (const Parameter& parameter : parameters.all()) {
        const ParameterRows& rows = parameter.is_vector ? parameter.whole : parameter.rows;
        std::vector<float> values(static_cast<size_t>(rows.elements()));
        std::vector<bfloat16> narrow(values.size());
        if (rows.narrow_master != nullptr) {
            backend.copy_to_host(narrow.data(), rows.narrow_master, 2 * rows.elements());
            std::copy(narrow.begin(), narrow.end(), values.begin());
        } else if (rows.elements() > 0) {
            backend.copy_to_host(values.data(), rows.master, 4 * rows.elements());
        }
        found[parameter.name].assign(values.begin(), values.end());
    }
    return found;
}

// What they must be.
std::vector<double> expected(const Parameter& parameter, const FolderTensors& tensors, bool narrow) {
    const ParameterRows& rows = parameter.is_vector ? parameter.whole : parameter.rows;
    std::vector<double> values;
    for (int64_t i = 0; i < rows.elements(); ++i) {
        const double value = tensors.at(parameter.name).value(rows.first_element + i);
        const bool rounds = narrow && !parameter.is_vector;
        values.push_back(rounds ? static_cast<float>(bfloat16(static_cast<float>(value))) : value);
    }
    return values;
}

std::unique_ptr<Transformer> model_of(Backend& backend, const ModelConfig& config,
                                      const Communicator& communicator, bool narrow = false) {
    QuantizationConfig quantization;
    if (narrow) quantization.master_type = DType::bfloat16;
    auto model = std::make_unique<Transformer>(backend, config, quantization, DType::float32, 1,
                                               StateShard{communicator.rank(), communicator.size()});
    model->allocate();
    model->parameters().initialize(backend, 5);
    return model;
}

void check_loaded(Backend& backend, Communicator& communicator, const std::string& folder,
                  const ModelConfig& config, const FolderTensors& tensors, bool narrow) {
    const auto model = model_of(backend, config, communicator, narrow);
    const HuggingFaceWeights weights(folder);
    weights.check(model->parameters());
    weights.load(backend, communicator, model->parameters());
    const auto found = masters(backend, model->parameters());
    for (const Parameter& parameter : model->parameters().all())
        if (found.at(parameter.name) != expected(parameter, tensors, narrow))
            throw std::runtime_error(parameter.name + " is wrong");
}

// A change of a good folder, and what loading it says then.
class FolderTest {
  public:
    explicit FolderTest(const ModelConfig& config = odd_config()) : config_(config) {}

    std::string error(const std::function<void(FolderTensors&)>& change, int shards = 1,
                      const std::function<void(const std::filesystem::path&)>& damage = {}) {
        const TemporaryDirectory directory;
        FolderTensors tensors = folder_tensors(config_, "BF16", 3);
        change(tensors);
        const std::string folder = write_folder(directory, "model", folder_config(config_), tensors, shards);
        if (damage) damage(folder);
        return error_of<std::runtime_error>([&] {
            const auto backend = make_cpu_backend(1);
            check_loaded(*backend, alone(), folder, config_, tensors, false);
        });
    }
    std::string damaged(int shards, const std::function<void(const std::filesystem::path&)>& damage) {
        return error([](FolderTensors&) {}, shards, damage);
    }

  private:
    const ModelConfig config_;
};

void set_value(FolderTensor& tensor, int64_t element, float value) {
    std::memcpy(tensor.bytes.data() + 4 * element, &value, sizeof value);
}

}  // namespace

TEST_CASE("weights of every dtype are loaded exactly, by any number of ranks", "[import][device]") {
    uint32_t seed = 1;
    for (const char* dtype : {"F32", "BF16", "F16"})
        for (const int shards : {1, 3})
            for (const int kind : {0, 1, 2}) {
                ModelConfig config = odd_config();
                config.tied = kind == 1;
                config.attention_biases = kind == 1;
                config.head_norms = kind == 2;
                const TemporaryDirectory directory;
                const FolderTensors tensors = folder_tensors(config, dtype, seed++);
                const std::string folder =
                    write_folder(directory, "model", folder_config(config), tensors, shards);
                INFO(dtype << ", " << shards << " files, kind " << kind);
                for (const int ranks : {1, 3, 5})
                    CHECK(error_of([&] {
                              run_ranks(ranks, [&](Communicator& communicator) {
                                  const auto backend = make_cpu_backend(1);
                                  check_loaded(*backend, communicator, folder, config, tensors, false);
                              });
                          }) == "");
            }
}

TEST_CASE("weights are loaded on every device, also without float32 masters", "[import][device]") {
    const TemporaryDirectory directory;
    const FolderTensors tensors = folder_tensors(odd_config(), "F16", 11);
    const std::string folder = write_folder(directory, "model", folder_config(odd_config()), tensors, 2);
    for (const BackendUnderTest& device : backends_under_test(DType::float32))
        for (const bool narrow : {false, true}) {
            if (narrow && device.is_cpu()) continue;
            INFO(device.name << ", narrow " << narrow);
            CHECK(error_of([&] {
                      check_loaded(*device.backend, alone(), folder, odd_config(), tensors, narrow);
                  }) == "");
        }
}

TEST_CASE("tensors longer than the staging buffer are loaded piece by piece", "[import]") {
    ModelConfig config = odd_config();
    config.vocabulary = 80'003;
    const TemporaryDirectory directory;
    const FolderTensors tensors = folder_tensors(config, "BF16", 12);
    const std::string folder = write_folder(directory, "model", folder_config(config), tensors);
    const auto backend = make_cpu_backend(1);
    CHECK(error_of([&] { check_loaded(*backend, alone(), folder, config, tensors, false); }) == "");
}

TEST_CASE("matmuls read what was loaded", "[import]") {
    const TemporaryDirectory directory;
    const FolderTensors tensors = folder_tensors(odd_config(), "F32", 13);
    const std::string folder = write_folder(directory, "model", folder_config(odd_config()), tensors);
    const auto backend = make_cpu_backend(1);
    const auto loss = [&](bool requantize) {
        const auto model = model_of(*backend, odd_config(), alone());
        HuggingFaceWeights(folder).load(*backend, alone(), model->parameters());
        if (requantize) model->parameters().quantize(*backend);
        const std::vector<int32_t> inputs = {1, 36, 0, 7, 7}, targets = {36, 0, 7, 7, 2};
        model->train_micro_batch(inputs.data(), targets.data(), 0, 1);
        return model->loss();
    };
    CHECK(loss(false) == loss(true));
    CHECK(loss(false) > 0);
}

TEST_CASE("a fingerprint tells weights apart and not how they are stored", "[import]") {
    const TemporaryDirectory directory;
    const FolderTensors tensors = folder_tensors(odd_config(), "F32", 4);
    auto fingerprint = [&, number = 0](const FolderTensors& of, int shards) mutable {
        return HuggingFaceWeights(write_folder(directory, std::to_string(number++), {}, of, shards))
            .fingerprint();
    };
    const uint64_t first = fingerprint(tensors, 1);
    CHECK(fingerprint(tensors, 3) == first);
    for (const char* name : {"model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"}) {
        FolderTensors others = tensors;
        others.at(name).bytes[5] ^= 1;
        CHECK(fingerprint(others, 1) != first);
    }
    // The last bytes too, however long a tensor is.
    for (const int64_t rows : {5, 4096, 6001, 12289}) {
        const FolderTensor large{"BF16", {rows, 3}, std::string(static_cast<size_t>(6 * rows), 'x')};
        FolderTensor other = large;
        other.bytes.back() ^= 1;
        CHECK(fingerprint({{"large", large}}, 1) != fingerprint({{"large", other}}, 1));
    }
    CHECK(fingerprint(folder_tensors(odd_config(), "BF16", 4), 1) != first);
    FolderTensors with_frequencies = tensors;
    with_frequencies["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {1}, "1234"};
    CHECK(fingerprint(with_frequencies, 1) == first);
}

TEST_CASE("tensors must be those of the model", "[import]") {
    FolderTest test;
    const std::string gate = "model.layers.1.mlp.gate_proj.weight";
    CHECK(test.error([](FolderTensors&) {}) == "");
    CHECK(test.error([](FolderTensors& tensors) {
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {1}, "1234"};
    }) == "");
    for (const int shards : {1, 2}) {
        CHECK(mentions(test.error([&](FolderTensors& tensors) { tensors.erase(gate); }, shards),
                       {"has no", gate.c_str()}));
        CHECK(mentions(test.error(
                           [&](FolderTensors& tensors) {
                               tensors["model.extra"] = {"F32", {1}, "1234"};
                           },
                           shards),
                       {".safetensors", "model.extra"}));
        CHECK(mentions(test.error(
                           [&](FolderTensors& tensors) {
                               tensors[gate].shape = {14, 11};
                           },
                           shards),
                       {gate.c_str(), "[14,11]", "[11,14]"}));
        CHECK(mentions(test.error(
                           [&](FolderTensors& tensors) {
                               tensors["model.norm.weight"].shape = {14, 1};
                           },
                           shards),
                       {"model.norm.weight", "[14,1]", "[14]"}));
        CHECK(mentions(test.error([&](FolderTensors& tensors) { tensors[gate].dtype = "I16"; }, shards),
                       {gate.c_str(), "I16", "F16"}));
    }
}

TEST_CASE("a tied head may be a copy of the embedding and nothing else", "[import]") {
    ModelConfig config = odd_config();
    config.tied = true;
    FolderTest test(config);
    const auto copy = [](FolderTensors& tensors) {
        tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
    };
    CHECK(test.error(copy) == "");
    CHECK(test.error(copy, 3) == "");
    CHECK(mentions(test.error([&](FolderTensors& tensors) {
        copy(tensors);
        tensors["lm_head.weight"].bytes[2 * 36 * 14 + 1] ^= 1;
    }),
                   {"lm_head.weight", "tie_word_embeddings"}));
    CHECK(mentions(test.error([&](FolderTensors& tensors) {
        tensors["lm_head.weight"] = {"BF16", {1}, "12"};
    }),
                   {"lm_head.weight"}));
}

TEST_CASE("numbers that are not finite end all ranks with one line", "[import]") {
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        const TemporaryDirectory directory;
        FolderTensors tensors = folder_tensors(odd_config(), "F32", 6);
        // In the last row: one rank alone reads it.
        set_value(tensors.at("model.layers.0.mlp.up_proj.weight"), 10 * 14 + 3, value);
        const std::string folder = write_folder(directory, "model", {}, tensors);
        std::vector<std::string> errors(3);
        run_ranks(3, [&](Communicator& communicator) {
            const auto backend = make_cpu_backend(1);
            const auto model = model_of(*backend, odd_config(), communicator);
            errors[communicator.rank()] = error_of(
                [&] { HuggingFaceWeights(folder).load(*backend, communicator, model->parameters()); });
        });
        for (const std::string& error : errors)
            CHECK(mentions(error, {"model.safetensors", "model.layers.0.mlp.up_proj.weight", "element 143"}));
    }
}

TEST_CASE("missing and damaged files are named", "[import]") {
    FolderTest test;
    const auto index = [](const std::filesystem::path& folder) {
        return folder / "model.safetensors.index.json";
    };
    const auto rewrite = [&](const std::filesystem::path& folder,
                             const std::function<void(nlohmann::json&)>& change) {
        nlohmann::json json = nlohmann::json::parse(read_bytes(index(folder).string()));
        change(json);
        write_bytes(index(folder).string(), json.dump());
    };
    CHECK(mentions(
        test.damaged(1, [](const auto& folder) { std::filesystem::remove(folder / "model.safetensors"); }),
        {"model.safetensors", "model.safetensors.index.json"}));
    CHECK(mentions(
        test.damaged(
            1, [](const auto& folder) { std::filesystem::resize_file(folder / "model.safetensors", 3000); }),
        {"model.safetensors", "truncated"}));
    CHECK(mentions(
        test.damaged(3, [](const auto& folder) { std::filesystem::remove(folder / "part-1.safetensors"); }),
        {"part-1.safetensors"}));
    CHECK(mentions(
        test.damaged(
            3, [](const auto& folder) { std::filesystem::resize_file(folder / "part-2.safetensors", 2000); }),
        {"part-2.safetensors", "truncated"}));
    CHECK(mentions(test.damaged(3, [&](const auto& folder) { write_bytes(index(folder).string(), "{"); }),
                   {"index.json"}));
    CHECK(mentions(test.damaged(3,
                                [&](const auto& folder) {
                                    rewrite(folder, [](auto& json) {
                                        json["weight_map"]["lm_head.weight"] = "part-1.safetensors";
                                    });
                                }),
                   {"index.json", "lm_head.weight", "part-1.safetensors"}));
    CHECK(mentions(test.damaged(3,
                                [&](const auto& folder) {
                                    rewrite(folder,
                                            [](auto& json) { json["weight_map"].erase("lm_head.weight"); });
                                }),
                   {"index.json", "lm_head.weight"}));
    for (const char* elsewhere : {"../model.safetensors", "/model.safetensors", ""})
        CHECK(mentions(test.damaged(3,
                                    [&](const auto& folder) {
                                        rewrite(folder, [&](auto& json) {
                                            json["weight_map"]["lm_head.weight"] = elsewhere;
                                        });
                                    }),
                       {"lm_head.weight"}));
}
