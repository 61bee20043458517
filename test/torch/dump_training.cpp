// train_qat_parity: trains a tiny model on random tokens and writes everything that went into and came out of
// each step, for compare.py to recompute in PyTorch. The files are described in dump.py.
//
// The steps are those of a training run: the same Transformer and Optimizer, called in the same order.
#include <cmath>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <numbers>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/optimizer.h"
#include "model/quantizer.h"
#include "model/storage/safetensors.h"
#include "model/transformer.h"

namespace train_qat {

namespace {

constexpr double peak_learning_rate = 3e-3;

struct Options {
    std::string directory;
    // Every option and its default. dtype and logits, of the same kind, are the only ones that are no numbers.
    std::map<std::string, std::string> values = {
        {"layers", "2"},
        {"width", "32"},
        {"heads", "4"},
        {"kv_heads", "2"},
        {"ffn", "64"},
        {"sequence", "8"},
        {"batch", "2"},
        {"micro_batches", "1"},
        {"bits", "4"},
        {"group", "0"},
        {"fp_steps", "3"},
        {"qat_steps", "3"},
        {"clip_norm", "1"},
        {"seed", "1"},
        {"dtype", "float32"},
        {"vocabulary", "131"},
        {"weight_factor", "4"},
        {"scale_rate_factor", "1"},
        {"logit_rows", "0"},
        {"logits", "float32"},
        // 0: width / heads; 0 or 1; positions of the model before its rotations were stretched, 0: they were not
        {"head_dim", "0"},
        {"tied", "1"},
        {"attention_biases", "0"},
        {"head_norms", "0"},
        {"stretched_from", "0"},
    };

    int64_t integer(const std::string& name) const { return std::stoll(values.at(name)); }
    double number(const std::string& name) const { return std::stod(values.at(name)); }
    DType dtype(const std::string& name) const {
        const std::string& text = values.at(name);
        if (text == name_of(DType::float32)) return DType::float32;
        if (text == name_of(DType::bfloat16)) return DType::bfloat16;
        throw std::runtime_error("--" + name + " " + text + ": choose float32 or bfloat16");
    }
};

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        if (!word.starts_with("--")) {
            if (!options.directory.empty())
                throw std::runtime_error(word + ": there is already an output directory, " +
                                         options.directory);
            options.directory = word;
            continue;
        }
        const auto found = options.values.find(word.substr(2));
        if (found == options.values.end()) throw std::runtime_error(word + ": no such option");
        if (i + 1 == argc) throw std::runtime_error(word + ": needs a value");
        found->second = argv[++i];
        if (found->first == "dtype" || found->first == "logits") continue;
        size_t read = 0;
        try {
            std::stod(found->second, &read);
        } catch (const std::exception&) {
            read = 0;
        }
        if (read == 0 || read != found->second.size())
            throw std::runtime_error(word + " " + found->second + ": is not a number");
    }
    if (options.directory.empty())
        throw std::runtime_error("usage: train_qat_parity DIRECTORY [--layers 2 ...]");
    return options;
}

ModelConfig model_config(const Options& options) {
    ModelConfig config;
    config.layers = options.integer("layers");
    config.width = options.integer("width");
    config.heads = options.integer("heads");
    config.kv_heads = options.integer("kv_heads");
    const int64_t head_dim = options.integer("head_dim");
    config.head_dim = head_dim > 0 ? head_dim : config.width / config.heads;
    config.ffn = options.integer("ffn");
    config.vocabulary = options.integer("vocabulary");
    config.sequence_length = options.integer("sequence");
    config.tied = options.integer("tied") != 0;
    config.attention_biases = options.integer("attention_biases") != 0;
    config.head_norms = options.integer("head_norms") != 0;
    if (options.integer("stretched_from") > 0)
        config.rope_scaling = {8.0, 1.0, 4.0, options.integer("stretched_from")};
    validate_config(config);
    return config;
}

// Copies of tensors, in the order in which they were added. The backend is the CPU: its memory is the host's.
class Dump {
  public:
    explicit Dump(Backend& device) : device_(device) {}

    void add(const std::string& name, const void* device_data, DType dtype,
             std::initializer_list<int64_t> shape) {
        NamedTensor named{name, Tensor(nullptr, dtype, shape)};
        named.tensor.data = storage_.emplace_back(named.tensor.bytes()).data();
        device_.copy_to_host(named.tensor.data, device_data, named.tensor.bytes());
        tensors_.push_back(named);
    }
    void add_host(const std::string& name, const void* data, DType dtype,
                  std::initializer_list<int64_t> shape) {
        NamedTensor named{name, Tensor(nullptr, dtype, shape)};
        const char* bytes = static_cast<const char*>(data);
        named.tensor.data = storage_.emplace_back(bytes, bytes + named.tensor.bytes()).data();
        tensors_.push_back(named);
    }
    void add_number(const std::string& name, double value) {
        const float narrow = static_cast<float>(value);
        add_host(name, &narrow, DType::float32, {1});
    }
    void write(const std::string& path) const {
        write_safetensors(path, device_, *make_single_communicator(), tensors_);
    }

  private:
    Backend& device_;
    std::deque<std::vector<char>> storage_;
    std::vector<NamedTensor> tensors_;
};

class ParityRun {
  public:
    explicit ParityRun(const Options& options)
        : options_(options),
          config_(model_config(options)),
          quantization_{options.number("bits"), options.integer("group")},
          backend_(make_cpu_backend()),
          model_(*backend_, config_, quantization_, options.dtype("dtype"), options.integer("batch"), {},
                 {options.integer("logit_rows"), options.dtype("logits")}),
          optimizer_config_(optimizer_config(options)),
          dump_(*backend_),
          random_(options.integer("seed")) {
        model_.allocate();
        model_.parameters().initialize(*backend_, options.integer("seed"));
        enlarge_weights(static_cast<float>(options.number("weight_factor")));
    }

    void run() {
        Optimizer optimizer(*backend_, model_.parameters(), optimizer_config_);
        for (int64_t step = 0; step < steps(); ++step) {
            if (step == options_.integer("fp_steps") && quantization_.enabled())
                optimizer.begin_quantization();
            train_step(optimizer, step);
        }
        dump_state("final");
        const std::filesystem::path directory(options_.directory);
        dump_.write((directory / "parity.safetensors").string());
        std::ofstream file(directory / "parity.json");
        file << description().dump(1) << "\n";
        if (!file.flush())
            throw std::runtime_error((directory / "parity.json").string() + ": cannot be written");
    }

  private:
    static OptimizerConfig optimizer_config(const Options& options) {
        OptimizerConfig config;
        config.clip_norm = options.number("clip_norm");
        config.scale_learning_rate_factor = options.number("scale_rate_factor");
        return config;
    }

    // A new model's attention is nearly uniform, which makes the gradients of queries and keys tiny
    // differences of large numbers. Larger matrices, and biases that are not zero, let every part of the model count
    // from the first step on.
    void enlarge_weights(float factor) {
        for (const Parameter& parameter : model_.parameters().all()) {
            const bool bias = parameter.name.ends_with(".bias");
            if (parameter.is_vector && !bias) continue;
            std::vector<float> weights(parameter.rows.elements());
            const int64_t bytes = parameter.rows.elements() * static_cast<int64_t>(sizeof(float));
            backend_->copy_to_host(weights.data(), parameter.rows.master, bytes);
            for (size_t i = 0; i < weights.size(); ++i)
                weights[i] = bias ? 0.3f * std::sin(static_cast<float>(i + 1)) : weights[i] * factor;
            backend_->copy_to_device(parameter.rows.master, weights.data(), bytes);
        }
        model_.parameters().quantize(*backend_);
    }

    int64_t steps() const { return options_.integer("fp_steps") + options_.integer("qat_steps"); }

    // Two steps of warmup, then a cosine to a tenth of the peak.
    double learning_rate(int64_t step) const {
        if (step < 2) return peak_learning_rate * static_cast<double>(step + 1) / 2;
        const double done = static_cast<double>(step - 2) / static_cast<double>(steps());
        return peak_learning_rate * (0.55 + 0.45 * std::cos(std::numbers::pi * done));
    }

    void train_step(Optimizer& optimizer, int64_t step) {
        const int64_t micro_batches = options_.integer("micro_batches"), T = config_.sequence_length;
        const int64_t tokens = model_.batch() * T;  // of a micro-batch
        const std::string place = "step" + std::to_string(step);
        std::vector<int32_t> inputs(micro_batches * tokens), targets(micro_batches * tokens);
        for (int32_t& token : inputs) token = random_token();
        for (int32_t& token : targets) token = random_token();

        dump_.add_host(place + "/inputs", inputs.data(), DType::int32, {micro_batches, model_.batch(), T});
        dump_.add_host(place + "/targets", targets.data(), DType::int32, {micro_batches, model_.batch(), T});
        dump_state(place);
        if (step == 0 || step == options_.integer("fp_steps")) dump_logits(place, inputs);
        for (int64_t i = 0; i < micro_batches; ++i)
            model_.train_micro_batch(&inputs[i * tokens], &targets[i * tokens], i, micro_batches);
        const double loss = model_.loss(), norm = optimizer.finish_gradients();
        if (!std::isfinite(norm))
            throw std::runtime_error("the gradient of " + optimizer.offender() + " is not finite");
        dump_.add_number(place + "/loss", loss);
        dump_.add_number(place + "/norm", norm);
        dump_gradients(place);
        optimizer.step(learning_rate(step));
        learning_rates_.push_back(learning_rate(step));
    }

    // Low tokens are likelier: a distribution that there is something to learn of.
    int32_t random_token() {
        const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;
        return static_cast<int32_t>(uniform * uniform * static_cast<double>(config_.vocabulary));
    }

    // The logits of the first micro-batch.
    void dump_logits(const std::string& place, const std::vector<int32_t>& inputs) {
        const int64_t T = config_.sequence_length, V = config_.vocabulary;
        std::vector<float> logits(model_.batch() * T * V);
        for (int64_t b = 0; b < model_.batch(); ++b) model_.logits(&inputs[b * T], 0, T, &logits[b * T * V]);
        dump_.add_host(place + "/logits", logits.data(), DType::float32, {model_.batch() * T, V});
    }

    void dump_matrix(const std::string& name, const Parameter& parameter, const float* data) {
        if (parameter.is_vector)
            dump_.add(name, data, DType::float32, {parameter.rows.columns});
        else
            dump_.add(name, data, DType::float32, {parameter.rows.rows, parameter.rows.columns});
    }

    void dump_scales(const std::string& name, const ParameterRows& rows, const float* data) {
        if (rows.scales() > 0) dump_.add(name, data, DType::float32, {rows.rows, rows.columns / rows.group});
    }

    void dump_state(const std::string& place) {
        for (const Parameter& parameter : model_.parameters().all()) {
            dump_matrix(place + "/weight/" + parameter.name, parameter, parameter.rows.master);
            dump_scales(place + "/scale/" + parameter.name, parameter.rows, parameter.rows.scale);
        }
    }

    void dump_gradients(const std::string& place) {
        for (const Parameter& parameter : model_.parameters().all()) {
            dump_matrix(place + "/gradient/" + parameter.name, parameter, parameter.rows.gradient);
            dump_scales(place + "/scale_gradient/" + parameter.name, parameter.rows,
                        parameter.rows.scale_gradient);
        }
    }

    nlohmann::json description() const {
        std::vector<double> scale_learning_rates;
        for (const double rate : learning_rates_)
            scale_learning_rates.push_back(rate * optimizer_config_.scale_learning_rate_factor);
        return {{"layers", config_.layers},
                {"width", config_.width},
                {"heads", config_.heads},
                {"kv_heads", config_.kv_heads},
                {"head_dim", config_.head_dim},
                {"ffn", config_.ffn},
                {"vocabulary", config_.vocabulary},
                {"sequence_length", config_.sequence_length},
                {"batch", model_.batch()},
                {"micro_batches", options_.integer("micro_batches")},
                {"tied", config_.tied},
                {"attention_biases", config_.attention_biases},
                {"head_norms", config_.head_norms},
                {"rope_theta", config_.rope_theta},
                {"rope_scaling",
                 {config_.rope_scaling.factor, config_.rope_scaling.low_frequency_factor,
                  config_.rope_scaling.high_frequency_factor, config_.rope_scaling.original_positions}},
                {"norm_epsilon", config_.norm_epsilon},
                {"bits", quantization_.bits},
                {"group", quantization_.group},
                {"dtype", options_.values.at("dtype")},
                {"fp_steps", options_.integer("fp_steps")},
                {"qat_steps", options_.integer("qat_steps")},
                {"learning_rates", learning_rates_},
                {"scale_learning_rates", scale_learning_rates},
                {"beta1", optimizer_config_.beta1},
                {"beta2", optimizer_config_.beta2},
                {"epsilon", optimizer_config_.epsilon},
                {"weight_decay", optimizer_config_.weight_decay},
                {"clip_norm", optimizer_config_.clip_norm}};
    }

    const Options options_;
    const ModelConfig config_;
    const QuantizationConfig quantization_;
    std::unique_ptr<Backend> backend_;
    Transformer model_;
    const OptimizerConfig optimizer_config_;
    Dump dump_;
    std::mt19937_64 random_;
    std::vector<double> learning_rates_;
};

}  // namespace

}  // namespace train_qat

int main(int argc, char** argv) {
    try {
        train_qat::ParityRun(train_qat::parse(argc, argv)).run();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "train_qat_parity: error: %s\n", error.what());
        return 2;
    }
    return 0;
}
