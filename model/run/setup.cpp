#include "model/run/setup.h"

#include "model/import/hugging_face_weights.h"
#include "model/job/data_set.h"

namespace train_qat {

namespace {

std::unique_ptr<Transformer> plan_model(const Options& options, const RunPlan& run_plan, Backend& backend,
                                        const Communicator& communicator, std::ostream& console) {
    QuantizationConfig quantization;
    quantization.bits = options.bits;
    quantization.group = options.group;
    quantization.master_type = options.master == "off" ? DType::bfloat16 : DType::float32;
    StateShard shard;
    if (options.zero == 1) shard = {communicator.rank(), communicator.size()};
    const DType type = compute_type(options, backend, console);
    return std::make_unique<Transformer>(backend, run_plan.config, quantization, type, run_plan.layout.batch,
                                         shard, logit_options(options, type));
}

}  // namespace

Setup::Setup(const Options& options, const RunPlan& run_plan, std::unique_ptr<Transformer> planned_model,
             Communicator& communicator, std::ostream& console)
    : options(options),
      run_plan(run_plan),
      communicator(communicator),
      console(console),
      model(std::move(planned_model)),
      optimizer(model->backend(), model->parameters(), options.optimizer, communicator),
      training_data(options.data.training,
                    training_loader(options, run_plan.config, communicator.rank(), communicator.size())),
      settings(run_settings(options, run_plan, model->backend(), model->compute_type())),
      checkpoints(this->options, model->backend(), model->parameters(), optimizer, settings,
                  training_data.fingerprint()),
      log(options.output_directory, settings, this->run_plan.plan, model->backend().describe(),
          communicator.rank() == 0),
      reports(communicator, run_plan.config.vocabulary) {
    if (!options.data.validation.empty()) {
        validation.emplace(options, run_plan.config);
        checkpoints.set_validation_fingerprint(validation->fingerprint());
    }
    if (!options.data.tokenizer.empty()) sample.emplace(options, run_plan.config, options.prompt, "-prompt");
    if (!options.initial_model.empty()) HuggingFaceWeights(options.initial_model).check(model->parameters());
    model->allocate();
}

std::unique_ptr<Setup> make_setup(const Options& options, Backend& backend, Communicator& communicator,
                                  std::ostream& console) {
    RunPlan run_plan = plan_run(options, communicator.size());
    add_predictions(options, run_plan);
    std::unique_ptr<Transformer> model = plan_model(options, run_plan, backend, communicator, console);
    console << describe(run_plan) << describe_passes(options, run_plan.config, run_plan.plan) << "\nmemory ("
            << name_of(model->compute_type()) << (communicator.size() > 1 ? ", of each rank" : "") << ")\n"
            << model->memory_table() << std::endl;
    if (options.plan_only) return nullptr;
    return std::make_unique<Setup>(options, run_plan, std::move(model), communicator, console);
}

}  // namespace train_qat
