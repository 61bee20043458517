#include "model/evaluation/trained_model.h"

#include <optional>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/config.h"
#include "model/import/hugging_face_config.h"
#include "model/import/hugging_face_weights.h"
#include "model/job/model_settings.h"
#include "model/job/settings.h"
#include "model/plan/plan.h"
#include "model/storage/checkpoint.h"
#include "model/storage/parameter_tensors.h"

namespace train_qat {

namespace {

// What a checkpoint's state says of the model (model/run/state.cpp writes it).
struct Description {
    ModelConfig config;
    QuantizationConfig quantization;
    bool quantized = false;
};

Description describe(const nlohmann::json& state, const std::string& path) {
    try {
        const nlohmann::json& settings = state.at("settings");
        Description result;
        result.config = model_of(settings);
        result.quantization.bits = settings.at("b").get<double>();
        result.quantization.group = settings.at("group");
        if (settings.at("master") == "off") result.quantization.master_type = DType::bfloat16;
        result.quantized = state.at("quantized").get<bool>();
        return result;
    } catch (const nlohmann::json::exception& error) {
        throw std::runtime_error("-e " + path + ": its manifest does not say what model it is (" +
                                 error.what() + ")");
    }
}

TrainedModel planned_model(const Options& options, const Description& description, Backend& backend,
                           std::ostream& console) {
    const DType type = compute_type(options, backend, console);
    TrainedModel trained;
    trained.bits = description.quantization.bits;
    trained.quantized = description.quantized;
    trained.model = std::make_unique<Transformer>(backend, description.config, description.quantization, type,
                                                  options.batch, StateShard{}, logit_options(options, type),
                                                  ModelUse::inference);
    return trained;
}

// Weights that were never trained so: with the scales that training would begin with.
void round_to_grid(Parameters& parameters, Backend& backend) {
    parameters.use_quantization(true);
    parameters.initialize_scales(backend);
    parameters.quantize(backend);
}

// Of a folder of another program, rounded to the bits of -b if they are given.
TrainedModel open_folder(const Options& options, Backend& backend, Communicator& communicator,
                         std::ostream& console) {
    std::optional<HuggingFaceWeights> weights;
    const auto opened = [&] {
        Description description;
        description.config = read_hugging_face_config(options.checkpoint, options.sequence_length);
        description.quantization.bits = options.bits_given ? options.bits : 16;
        description.quantization.group = options.group;
        TrainedModel trained = planned_model(options, description, backend, console);
        trained.path = options.checkpoint;
        weights.emplace(options.checkpoint).check(trained.model->parameters());
        trained.model->allocate();
        return trained;
    };
    TrainedModel trained = run_together(communicator, opened);
    Parameters& parameters = trained.model->parameters();
    weights->load(backend, communicator, parameters);
    if (trained.bits < 16) round_to_grid(parameters, backend);
    return trained;
}

}  // namespace

TrainedModel open_trained_model(const Options& options, Backend& backend, Communicator& communicator,
                                std::ostream& console) {
    if (run_together(communicator, [&] { return is_hugging_face_folder(options.checkpoint); }))
        return open_folder(options, backend, communicator, console);
    const CheckpointReader reader(options.checkpoint, communicator);
    const Description description =
        run_together(communicator, [&] { return describe(reader.state(), reader.path()); });
    TrainedModel trained = planned_model(options, description, backend, console);
    trained.path = reader.path();
    trained.model->allocate();
    Parameters& parameters = trained.model->parameters();
    parameters.use_quantization(description.quantized);
    reader.load_model(backend, communicator, model_tensors(parameters));
    parameters.quantize(backend);
    return trained;
}

void for_each_precision(TrainedModel& trained, Backend& backend,
                        const std::function<void(const std::string& weights)>& measure) {
    Parameters& parameters = trained.model->parameters();
    parameters.use_quantization(false);
    parameters.quantize(backend);
    measure("full precision");
    if (trained.bits >= 16) return;
    if (trained.quantized) {
        parameters.use_quantization(true);
        parameters.quantize(backend);
    } else {
        round_to_grid(parameters, backend);
    }
    measure((trained.quantized ? "quantized, " : "rounded to ") + bits_with_unit(trained.bits));
}

}  // namespace train_qat
