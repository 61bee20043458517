// One training step of the benchmark model, timed. Both ways print the measured matmul peak first:
//   train_qat_bench --profile [options]   where the time of a step goes, operation by operation
//   train_qat_bench --serve [options]     for dev/bench/bench.py, so that peers can be timed in turn: each
//                                         line "step" on stdin runs one step and answers its
//                                         milliseconds; "quit" ends
#include <algorithm>
#include <chrono>
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <random>
#include <vector>

#include "dev/bench/profiler.h"
#include "kernels/cpu/platform/openmp_settings.h"
#include "model/optimizer.h"
#include "model/transformer.h"

using namespace train_qat;

namespace {

struct Settings {
    int64_t layers = 6, width = 384, heads = 6, kv_heads = 6, ffn = 1024, vocabulary = 8192, sequence = 256,
            batch = 8;
    std::string size;  // a size by the rule of -n, instead of the shape
    double bits = 16;
    int64_t group = 0;
    int threads = 0, steps = 20;
    bool fp32 = false, serve = false, profile = false;
};

Settings parse(int argc, char** argv) {
    Settings s;
    CLI::App app("times training steps");
    app.add_option("--size", s.size, "a size such as 1M, instead of the shape");
    app.add_option("--layers", s.layers);
    app.add_option("--width", s.width);
    app.add_option("--heads", s.heads);
    app.add_option("--kv-heads", s.kv_heads);
    app.add_option("--ffn", s.ffn);
    app.add_option("--vocabulary", s.vocabulary);
    app.add_option("--sequence", s.sequence);
    app.add_option("--batch", s.batch);
    app.add_option("--bits", s.bits, "16: full-precision steps; below: quantization-aware steps");
    app.add_option("--group", s.group);
    app.add_option("--threads", s.threads);
    app.add_option("--steps", s.steps);
    app.add_flag("--fp32", s.fp32);
    app.add_flag("--serve", s.serve);
    app.add_flag("--profile", s.profile);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        std::exit(app.exit(error) == 0 ? 0 : 2);
    }
    return s;
}

class Bench {
  public:
    Bench(const Settings& s, Backend& backend)
        : config_(s.size.empty() ? resolve_config("", s.vocabulary, s.sequence,
                                                  {s.layers, s.width, s.heads, s.kv_heads, s.ffn})
                                 : resolve_config(s.size, s.vocabulary, s.sequence)),
          model_(backend, config_, {s.bits, s.group}, s.fp32 ? DType::float32 : DType::bfloat16, s.batch),
          inputs_(s.batch * s.sequence),
          targets_(inputs_.size()) {
        model_.allocate();
        model_.parameters().initialize(backend, 1);
        optimizer_ = std::make_unique<Optimizer>(backend, model_.parameters(), OptimizerConfig{});
        if (s.bits < 16) optimizer_->begin_quantization();
        std::mt19937 random(1);
        for (int32_t& token : inputs_) token = static_cast<int32_t>(random() % s.vocabulary);
        for (int32_t& token : targets_) token = static_cast<int32_t>(random() % s.vocabulary);
    }
    double step() {
        const auto start = std::chrono::steady_clock::now();
        model_.train_micro_batch(inputs_.data(), targets_.data(), 0, 1);
        model_.loss();
        optimizer_->finish_gradients();
        optimizer_->step(1e-4);
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    }
    double flops() const { return training_flops_per_token(config_) * static_cast<double>(inputs_.size()); }
    double tokens() const { return static_cast<double>(inputs_.size()); }

  private:
    ModelConfig config_;
    Transformer model_;
    std::unique_ptr<Optimizer> optimizer_;
    std::vector<int32_t> inputs_, targets_;
};

void print_profile(const Profiler& profiler, int steps) {
    std::vector<std::pair<std::string, Profiler::Entry>> rows(profiler.entries().begin(), profiler.entries().end());
    std::sort(rows.begin(), rows.end(), [](auto& a, auto& b) { return a.second.seconds > b.second.seconds; });
    std::printf("%-26s %6s %9s %10s %9s\n", "operation", "calls", "ms/step", "GFLOP/s", "GB/s");
    for (const auto& [name, entry] : rows)
        std::printf("%-26s %6.0f %9.2f %10.0f %9.1f\n", name.c_str(),
                    static_cast<double>(entry.calls) / steps, entry.seconds * 1e3 / steps,
                    entry.cost.flops / entry.seconds / 1e9, entry.cost.bytes / entry.seconds / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
    limit_openmp_spinning(argv);
    const Settings settings = parse(argc, argv);
    const auto device = make_cpu_backend(settings.threads);
    const double peak = device->peak_flops(settings.fp32 ? DType::float32 : DType::bfloat16);
    std::printf("peak %.1f GFLOP/s\n", peak / 1e9);
    if (settings.serve) {
        Bench bench(settings, *device);
        std::printf("ready\n");
        std::fflush(stdout);
        for (std::string line; std::getline(std::cin, line) && line != "quit";) {
            std::printf("%.4f\n", bench.step());
            std::fflush(stdout);
        }
        return 0;
    }
    Profiler profiler;
    device->set_observer(settings.profile ? &profiler : nullptr);
    Bench bench(settings, *device);
    for (int i = 0; i < 3; ++i) bench.step();
    profiler.reset();
    std::vector<double> times;
    for (int i = 0; i < settings.steps; ++i) times.push_back(bench.step());
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    std::printf("step: median %.1f ms, fastest %.1f ms, %.0f tokens/s, %.1f%% of the measured matmul peak\n",
                median, times.front(), bench.tokens() / median * 1e3,
                100 * bench.flops() / (median * 1e-3) / peak);
    if (settings.profile) print_profile(profiler, settings.steps);
}
