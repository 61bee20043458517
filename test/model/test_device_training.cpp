// The CUDA kernels train a model as the CPU does: 10 steps in full precision, 10 quantization-aware. The
// losses of two runs that start alike stay within 1%; gradients are compared where both stand on the same
// weights.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "dev/emulator/emulator.h"
#include "kernels/cuda/platform/cuda_options.h"
#include "model/optimizer.h"
#include "model/storage/parameter_tensors.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/tiny_model.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr double learning_rate = 1e-3;

// Head dimension 64: the tensor-core attention; sizes that are no multiple of a tile.
ModelConfig config_with_heads_of_64() {
    ModelConfig config = tiny_config();
    config.width = 128;
    config.heads = 2;
    config.kv_heads = 1;
    config.head_dim = 64;
    config.ffn = 160;
    config.vocabulary = 101;
    config.sequence_length = 21;
    return config;
}

struct TrainedModel {
    TrainedModel(Backend& backend, DType dtype, const QuantizationConfig& quantization)
        : tiny(backend, dtype, quantization, 2, config_with_heads_of_64()),
          optimizer(backend, tiny.parameters(), {}) {
        // Smaller weights than other tests want: training must not be chaotic, or small differences grow.
        for (size_t i = 0; i < tiny.parameters().all().size(); ++i) {
            if (tiny.parameters().all()[i].is_vector) continue;
            Array weights = tiny.weight(i);
            for (double& weight : weights) weight *= 0.25;
            tiny.write(tiny.parameters().all()[i].rows.master, weights);
        }
        tiny.parameters().use_quantization(false);
        tiny.parameters().quantize(backend);
    }

    // Gradients of one batch; the loss.
    double backward(int step) {
        tiny.train(tiny.tokens(4, 40 + step), 2);
        return tiny.model.loss();
    }
    void update() {
        optimizer.finish_gradients();
        optimizer.step(learning_rate);
    }

    // Stands where `other` stands.
    void follow(TrainedModel& other) {
        tiny.parameters().use_quantization(other.tiny.parameters().quantized());
        for (size_t i = 0; i < tiny.parameters().all().size(); ++i) {
            const ParameterRows &mine = tiny.parameters().all()[i].rows,
                                &theirs = other.tiny.parameters().all()[i].rows;
            tiny.write(mine.master, other.tiny.read(theirs.master, theirs.elements()));
            if (theirs.scales() > 0) tiny.write(mine.scale, other.tiny.read(theirs.scale, theirs.scales()));
        }
        tiny.parameters().quantize(tiny.backend);
    }

    TinyModel tiny;
    Optimizer optimizer;
};

double cosine(const Array& a, const Array& b) {
    return reference::dot(a, b) / std::sqrt(reference::dot(a, a) * reference::dot(b, b));
}

// "" or the first parameter whose gradients (and scale gradients, after the straight-through pass) differ.
std::string differing_gradient(TrainedModel& actual, TrainedModel& expected, double smallest_cosine) {
    for (size_t i = 0; i < expected.tiny.parameters().all().size(); ++i) {
        const Parameter& parameter = expected.tiny.parameters().all()[i];
        const double similarity = cosine(actual.tiny.gradient(i), expected.tiny.gradient(i));
        if (!(similarity >= smallest_cosine))
            return parameter.name + ": cosine " + std::to_string(similarity);
        if (parameter.rows.grid == Grid::none) continue;
        const auto scale_gradient = [i](TrainedModel& model) {
            const ParameterRows& rows = model.tiny.parameters().all()[i].rows;
            return model.tiny.read(rows.scale_gradient, rows.scales());
        };
        const double of_scales = cosine(scale_gradient(actual), scale_gradient(expected));
        if (!(of_scales >= smallest_cosine))
            return parameter.name + "_scale: cosine " + std::to_string(of_scales);
    }
    return "";
}

}  // namespace

TEST_CASE("CUDA kernels train as the CPU does, through the switch", "[training][device]") {
    const std::unique_ptr<Backend> cpu = make_cpu_backend(2);
    constexpr int fp_steps = 10, qat_steps = 10;
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype))
            for (const QuantizationConfig& quantization :
                 {QuantizationConfig{4, 0}, QuantizationConfig{1.58, 0}, QuantizationConfig{2, 32}}) {
                if (!cpu->supports(dtype) || device.is_cpu()) continue;
                // Enough of the combinations that each kind of kernel trains.
                const bool codes = device.name.find("codes") != std::string::npos;
                if (quantization.bits != 4 && (dtype == DType::float32 || !codes)) continue;
                if (dtype == DType::float32 && codes) continue;
                TrainedModel expected(*cpu, dtype, quantization),
                    actual(*device.backend, dtype, quantization),
                    follower(*device.backend, dtype, quantization);
                for (int step = 0; step < fp_steps + qat_steps; ++step) {
                    if (step == fp_steps)
                        for (TrainedModel* model : {&expected, &actual})
                            model->optimizer.begin_quantization();
                    INFO(device.name << ", " << name_of(dtype) << ", " << quantization.bits << " bits, step "
                                     << step);
                    const bool compare = step % 5 == 0 || step + 1 == fp_steps + qat_steps;
                    if (compare) follower.follow(expected);
                    const double loss = expected.backward(step);
                    CHECK(actual.backward(step) == Approx(loss).epsilon(0.01));
                    if (compare) {
                        CHECK(follower.backward(step) == Approx(loss).epsilon(0.01));
                        follower.optimizer.finish_gradients();
                    }
                    expected.optimizer.finish_gradients();
                    if (compare) CHECK(differing_gradient(follower, expected, 0.999) == "");
                    expected.optimizer.step(learning_rate);
                    actual.update();
                }
            }
}

// All matmuls but those of the odd vocabulary, whose rows tensor maps cannot take.
TEST_CASE("Hopper's matmuls train as the CPU's do, through the switch", "[training][cuda][hopper]") {
    emulator::Settings settings = emulator::settings();
    settings.compute_capability = 90;
    const emulator::SettingsScope scope(settings);
    CudaOptions options;
    options.gemm = DenseGemm::hopper;
    options.qat_gemm = QatGemm::cublaslt;  // levels, which dense matmuls take
    const std::unique_ptr<Backend> cpu = make_cpu_backend(2), hopper = make_emulated_cuda_backend(options);
    if (!cpu->supports(DType::bfloat16)) return;
    TrainedModel expected(*cpu, DType::bfloat16, {4, 0}), actual(*hopper, DType::bfloat16, {4, 0});
    for (const int step : {0, 1}) {
        if (step == 1) expected.optimizer.begin_quantization();
        actual.follow(expected);
        INFO("step " << step);
        const double loss = expected.backward(step);
        CHECK(actual.backward(step) == Approx(loss).epsilon(0.01));
        actual.optimizer.finish_gradients();
        expected.optimizer.finish_gradients();
        CHECK(differing_gradient(actual, expected, 0.999) == "");
        expected.optimizer.step(learning_rate);
    }
}

TEST_CASE("a model without float32 masters trains, reproducibly, in the numbers of bfloat16",
          "[training][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::bfloat16)) {
        if (device.is_cpu()) continue;  // refuses, tested with the optimizer's kernels
        INFO(device.name);
        QuantizationConfig quantization{4, 0};
        quantization.master_type = DType::bfloat16;
        const auto train = [&](std::vector<double>* losses) {
            Transformer model(*device.backend, tiny_config(), quantization, DType::bfloat16, 2);
            model.allocate();
            model.parameters().initialize(*device.backend, 7);
            Optimizer optimizer(*device.backend, model.parameters(), {});
            Random random(3);
            std::vector<int32_t> tokens(2 * tiny_config().sequence_length);
            for (int32_t& token : tokens)
                token = static_cast<int32_t>(random.integer(0, tiny_config().vocabulary - 1));
            for (int step = 0; step < 16; ++step) {
                if (step == 8) optimizer.begin_quantization();
                model.train_micro_batch(tokens.data(), tokens.data(), 0, 1);
                losses->push_back(model.loss());
                optimizer.finish_gradients();
                optimizer.step(1e-2);
            }
            for (const NamedTensor& tensor : model_tensors(model.parameters()))
                if (tensor.name.ends_with("proj.weight")) CHECK(tensor.tensor.dtype == DType::bfloat16);
        };
        std::vector<double> first, second;
        train(&first);
        train(&second);
        CHECK(first == second);
        CHECK(first[7] < 0.8 * first[0]);
        CHECK(first[15] < first[7]);
    }
}

TEST_CASE(
    "a step by Hopper's attention is one by the other kernels, and keeps what rounding took from attention's "
    "outputs",
    "[training][cuda][hopper]") {
    emulator::Settings settings = emulator::settings();
    settings.compute_capability = 90;
    const emulator::SettingsScope scope(settings);
    CudaOptions options;
    const std::unique_ptr<Backend> other = make_emulated_cuda_backend(options);
    options.attention = AttentionKernels::hopper;
    const std::unique_ptr<Backend> hopper = make_emulated_cuda_backend(options);
    const QuantizationConfig quantization{4, 0};
    TrainedModel expected(*other, DType::bfloat16, quantization),
        actual(*hopper, DType::bfloat16, quantization);
    for (int step = 0; step < 2; ++step) {
        INFO("step " << step);
        if (step == 1)
            for (TrainedModel* model : {&expected, &actual}) model->optimizer.begin_quantization();
        actual.follow(expected);
        const double loss = expected.backward(step);
        CHECK(actual.backward(step) == Approx(loss).epsilon(1e-3));
        for (TrainedModel* model : {&expected, &actual}) model->optimizer.finish_gradients();
        CHECK(differing_gradient(actual, expected, 0.9999) == "");
        expected.optimizer.step(learning_rate);
    }
    const std::string line = "what rounding took from attention's outputs";
    CHECK(actual.tiny.model.memory_table().find(line) != std::string::npos);
    CHECK(expected.tiny.model.memory_table().find(line) == std::string::npos);
}
