// train_qat: from the command line to a trained model, with the one training loop.
//
// The loop runs over two step ranges that the plan fixes before it starts: [0, fp_steps) in full precision,
// then [fp_steps, total_steps) quantization-aware. Model and operations are the same in both; what differs is
// the phase, which is reported, and the grid that the optimizer rounds weights to.
//
// All ranks of a run execute the same steps, each on its own part of every batch; rank 0 writes and prints.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/platform/openmp_settings.h"
#include "kernels/ranks/agreement.h"
#include "model/evaluation/evaluation.h"
#include "model/evaluation/export.h"
#include "model/evaluation/text_generation.h"
#include "model/job/choices.h"
#include "model/job/data_set.h"
#include "model/job/failure.h"
#include "model/job/job.h"
#include "model/job/settings.h"
#include "model/job/stop_signal.h"
#include "model/plan/schedule.h"
#include "model/run/outcome.h"
#include "model/run/run.h"
#include "model/run/setup.h"
#include "model/storage/output_lock.h"
#include "model/sweep/sweep.h"
#include "model/units.h"

namespace train_qat {
namespace {

using Clock = std::chrono::steady_clock;

// ---- the training loop

// One of the two step ranges: from the present step to `range_end`. False when it was to stop before.
bool train_range(Phase phase, int64_t range_end, Setup& setup, Run& run, const StepObserver& on_step) {
    const Plan& plan = setup.run_plan.plan;
    const int64_t batch = setup.run_plan.layout.batch;
    const int64_t micro_batches = setup.run_plan.layout.gradient_accumulation;  // of this rank
    Transformer& model = *setup.model;
    Optimizer& optimizer = setup.optimizer;
    std::vector<int32_t> inputs(batch * model.config().sequence_length), targets(inputs.size());  // (B, T)

    while (run.step() < range_end) {
        if (run.reached_until()) return false;
        const Clock::time_point start = Clock::now();

        // Gradients of this rank's part of the step; with the last micro-batch ranks begin to sum them.
        for (int64_t micro = 0; micro < micro_batches; ++micro) {
            const bool last = micro + 1 == micro_batches;
            setup.training_data.next_batch(batch, inputs.data(), targets.data());
            model.train_micro_batch(inputs.data(), targets.data(), micro,
                                    micro_batches * setup.communicator.size(),
                                    last ? &optimizer.data_parallel() : nullptr);
        }
        setup.reports.gather(model.loss());

        // Once a step: straight-through backward pass and norm, a look at the numbers, AdamW and new levels.
        const double norm = optimizer.finish_gradients();
        setup.reports.check(run.step() + 1, norm, optimizer.offender());
        const double rate = learning_rate(plan, run.step());
        optimizer.step(rate);
        run.count_step();

        const double loss = setup.reports.loss();
        setup.log.step(phase, run.step(), loss, norm, rate, seconds_since(start));
        if (on_step && on_step(run.step(), loss, setup.log.tokens_per_second())) setup.reports.ask_to_stop();
        if (run.step() < range_end) run.validate_if_due(phase);
        if (setup.reports.stop() && run.step() < plan.total_steps) return false;
        if (run.step() < range_end && !run.reached_until()) run.save_if_due();
    }
    return true;
}

// Both step ranges. False when a signal has ended them before their time.
bool train_ranges(Setup& setup, Run& run, const StepObserver& on_step) {
    const Plan& plan = setup.run_plan.plan;
    run.validate_where_branched();
    if (!train_range(Phase::full_precision, plan.fp_steps, setup, run, on_step)) return run.stop();
    if (run.part_is_done()) return run.stop();
    if (plan.qat_steps > 0) run.switch_to_quantization();
    if (!train_range(Phase::quantization_aware, plan.total_steps, setup, run, on_step)) return run.stop();
    return run.finish();
}

// ---- a run

// A TrainFunction.
RunOutcome train(const Options& options, Backend& backend, Communicator& communicator, std::ostream& console,
                 const StepObserver& on_step) {
    // Mistakes show here, and all ranks then end alike.
    const std::unique_ptr<Setup> setup =
        run_together(communicator, [&] { return make_setup(options, backend, communicator, console); });
    if (setup == nullptr) return {};  // only the plan was asked for
    run_together(communicator, [&] {
        if (communicator.rank() == 0) check_exports(options, with_roles(setup->settings, recorded_roles));
    });
    const Clock::time_point start = Clock::now();
    Run run(*setup);
    if (run.is_done_already()) return {};
    save_on_stop_signals();
    run.begin();
    const bool finished = train_ranges(*setup, run, on_step);
    return {finished, run.results(), seconds_since(start)};
}

// ---- the program

// A file opened later must not become the one that is printed to: writes to a closed one fail as before.
void occupy_standard_files() {
    for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::fcntl(file, F_GETFD) < 0)
            static_cast<void>(::open("/dev/null", file == 0 ? O_WRONLY : O_RDONLY));
}

// Until all ranks have ended: one that is interrupted must not let another run in.
void lock_output(const Options& options, Job& job) {
    job.run_on_rank_0([&] {
        const char* worker = options.sweep.empty() ? "run" : "sweep";
        job.keep(std::make_shared<OutputLock>(options.output_directory, worker));
    });
}

// On this rank. Returns the exit code.
int run(const std::vector<std::string>& arguments, const Options& given, Job& job) {
    std::ostream nowhere(nullptr);
    // With -sample the standard output is the text's.
    std::ostream& console = job.rank() == 0 && !given.sample ? std::cout : nowhere;
    const Options asked = job.run_together([&] { return with_law(with_prepared_data(given)); });
    job.run_on_rank_0([&] { check_data(asked); });  // it may read all of the shards
    if (asked.data.training != given.data.training) console << describe_prepared_data(asked.data) << "\n";
    if (!asked.plan_only && !asked.evaluate_only && !asked.sample) lock_output(asked, job);
    if (!asked.sweep.empty()) return run_sweep(arguments, asked, job, train) ? 0 : stop_exit_code();
    const ResolvedOptions resolved = job.run_together([&] { return resolve_choices(asked, job.size()); });
    const Options& options = resolved.options;
    console << resolved.report;

    const std::unique_ptr<Backend> backend =
        job.run_together([&] { return job.make_backend(options, job.size(), console); });
    const std::unique_ptr<Communicator> communicator = job.connect(job.team(job.size()), *backend);
    if (job.size() > 1) console << "ranks: " << communicator->describe() << "\n";
    if (options.evaluate_only) {
        end_job_on_failure(job, [&] { evaluate(options, *backend, *communicator, console); });
        return 0;
    }
    if (options.sample) {
        end_job_on_failure(job, [&] { generate_text(options, *backend, *communicator, std::cout, console); });
        return 0;
    }
    const RunOutcome outcome =
        end_job_on_failure(job, [&] { return train(options, *backend, *communicator, console, {}); });
    if (!outcome.finished) return stop_exit_code();
    if (job.rank() != 0 || options.plan_only) return 0;
    return write_exports(options, console) ? 0 : stop_exit_code();
}

}  // namespace
}  // namespace train_qat

int main(int argc, char** argv) {
    train_qat::limit_openmp_spinning(argv);
    train_qat::occupy_standard_files();
    // Of many ranks the launcher says it, which also sends the signal where one of them has failed and has said why.
    train_qat::end_on_stop_signals(train_qat::starts_alone());
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // whatever ends the process, its lines are out
    std::signal(SIGXFSZ, SIG_IGN);  // a file over its limit is an error of the write, with a message
    return train_qat::run_to_exit_code({argv + 1, argv + argc}, train_qat::run);
}
