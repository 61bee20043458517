// train_qat_bench_matmul [--rows 2048] [--rounds 15] [--fp32] [--threads N]: the products of the benchmark model's linear
// layers, ours and oneDNN's in turn; GFLOP/s, best of the rounds, and the ratio of the summed times.
#include <algorithm>
#include <chrono>
#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <random>

#include "dev/cpu/onednn_matmul.h"
#include "kernels/backend.h"
#include "kernels/cpu/platform/openmp_settings.h"

using namespace train_qat;

namespace {

struct Layer {
    const char* name;
    int64_t outputs, inputs, calls;  // calls: of a step
    int64_t rows = 0;                // 0: --rows
};

constexpr Layer layers[] = {{"q, k, v", 1152, 384, 6},
                            {"attention's output", 384, 384, 6},
                            {"gate and up", 2048, 384, 6},
                            {"down", 384, 1024, 6},
                            {"head", 8192, 384, 4, 512}};

// Memory of a backend that lives as long as this.
class Memory {
  public:
    Memory(Backend& backend, int64_t bytes) : backend_(backend), data_(backend.allocate(bytes)) {}
    ~Memory() { backend_.release(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* data() const { return data_; }

  private:
    Backend& backend_;
    void* data_;
};

double seconds(const std::function<void()>& function) {
    const auto start = std::chrono::steady_clock::now();
    function();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Best seconds of ours and of oneDNN's.
std::pair<double, double> race(int rounds, const std::function<void()>& ours,
                               const std::function<void()>& library) {
    double best[2] = {1e9, 1e9};
    for (int round = 0; round < rounds + 2; ++round) {  // two to warm up
        const double times[2] = {seconds(ours), seconds(library)};
        for (int i = 0; i < 2; ++i)
            if (round > 1) best[i] = std::min(best[i], times[i]);
    }
    return {best[0], best[1]};
}

void fill(const Memory& memory, DType dtype, int64_t count) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i)
        if (dtype == DType::bfloat16)
            static_cast<bfloat16*>(memory.data())[i] = normal(random);
        else
            static_cast<float*>(memory.data())[i] = normal(random);
}

struct Times {
    double ours = 0, library = 0;
};

void run_layer(Backend& backend, DType type, const Layer& layer, int64_t rows, int rounds,
               Times (&totals)[3]) {
    const int64_t M = layer.rows > 0 ? layer.rows : rows, N = layer.outputs, K = layer.inputs,
                  size = size_of(type);
    const Memory x(backend, M * K * size), z(backend, M * N * size), dx(backend, M * K * size),
        dq(backend, N * K * 4);
    fill(x, type, M * K);
    fill(z, type, M * N);
    ComputeWeight weight;
    weight.rows = N, weight.columns = K, weight.dtype = type;
    const Memory storage(backend, backend.compute_weight_bytes(N, K, type, false)), scales(backend, N * 4);
    weight.storage = storage.data();
    weight.scale_storage = static_cast<float*>(scales.data());
    const Tensor x_tensor(x.data(), type, {M, K}), z_tensor(z.data(), type, {M, N}),
        dx_tensor(dx.data(), type, {M, K}), dq_tensor(dq.data(), DType::float32, {N, K});

    OneDnnMatmul library[3] = {OneDnnMatmul(type), OneDnnMatmul(type), OneDnnMatmul(type)};
    library[0].prepare_rows(z.data(), x.data(), M, K, N);
    library[1].prepare_rows(dx.data(), z.data(), M, N, K);
    library[2].prepare_columns(static_cast<float*>(dq.data()), z.data(), x.data(), N, M, K);
    const std::function<void()> ours[3] = {
        [&] { backend.matmul_forward({.z = z_tensor, .x = x_tensor, .weight = weight}); },
        [&] { backend.matmul_input_gradient({.dx = dx_tensor, .dz = z_tensor, .weight = weight}); },
        [&] {
            backend.matmul_weight_gradient(
                {.dq = dq_tensor, .dz = z_tensor, .x = x_tensor, .accumulate = true});
        }};
    std::printf("%-20s %5lld x %5lld x %5lld", layer.name, static_cast<long long>(M),
                static_cast<long long>(K), static_cast<long long>(N));
    for (int form = 0; form < 3; ++form) {
        const auto [own, theirs] = race(rounds, ours[form], [&] { library[form].run(); });
        const double gigaflops = 2e-9 * static_cast<double>(M * N * K);
        std::printf("   %6.0f %6.0f", gigaflops / own, gigaflops / theirs);
        totals[form].ours += own * static_cast<double>(layer.calls);
        totals[form].library += theirs * static_cast<double>(layer.calls);
    }
    std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
    limit_openmp_spinning(argv);
    int64_t rows = 2048;
    int rounds = 15, threads = 0;
    bool float32 = false;
    CLI::App app("times the products of linear layers, ours and oneDNN's");
    app.add_option("--rows", rows);
    app.add_option("--rounds", rounds);
    app.add_option("--threads", threads);
    app.add_flag("--fp32", float32);
    CLI11_PARSE(app, argc, argv);

    const auto backend = make_cpu_backend(threads);
    const DType type = float32 ? DType::float32 : DType::bfloat16;
    std::printf("%s; %s; oneDNN %s\n", backend->describe().c_str(), name_of(type), onednn_version().c_str());
    std::printf("%-20s %-21s   %-13s   %-13s   %-13s\n", "GFLOP/s, ours oneDNN", "rows x in x out", "forward",
                "input gradient", "weight gradient");
    Times totals[3];
    for (const Layer& layer : layers) run_layer(*backend, type, layer, rows, rounds, totals);
    std::printf("a step: ours %.1f, %.1f, %.1f ms; oneDNN's time over ours %.3f, %.3f, %.3f\n",
                totals[0].ours * 1e3, totals[1].ours * 1e3, totals[2].ours * 1e3,
                totals[0].library / totals[0].ours, totals[1].library / totals[1].ours,
                totals[2].library / totals[2].ours);
}
