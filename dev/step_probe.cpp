#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include "model/optimizer.h"
#include "model/transformer.h"
using namespace train_qat;
int main(int argc, char** argv) {
    double bits = argc > 1 ? std::stod(argv[1]) : 16; int64_t B = 8;
    auto backend = make_cpu_backend(argc > 2 ? atoi(argv[2]) : 0);
    ModelConfig c = resolve_config("", 8192, 256, {6, 384, 6, 6, 1024});
    if (argc > 3) { c = resolve_config(argv[3], 4096, 256); }
    Transformer t(*backend, c, {bits < 16 ? bits : 4, 0}, DType::bfloat16, B);
    printf("%s\n%s\n", backend->describe().c_str(), t.memory_table().c_str());
    t.allocate(); t.parameters().initialize(*backend, 1);
    OptimizerConfig oc; Optimizer o(*backend, t.parameters(), oc);
    std::mt19937 r(1); std::vector<int32_t> x(B * 256), y(B * 256);
    for (auto& v : x) v = r() % 4096; for (auto& v : y) v = r() % 4096;
    printf("peak %.0f\n", backend->peak_flops(DType::bfloat16) / 1e9);
    if (bits < 16) o.begin_quantization();
    double best = 1e9;
    for (int s = 0; s < 12; s++) {
        auto t0 = std::chrono::steady_clock::now();
        t.train_micro_batch(x.data(), y.data(), 0, 1);
        auto t1 = std::chrono::steady_clock::now();
        double loss = t.loss(), n = o.finish_gradients(); 
        auto t2 = std::chrono::steady_clock::now();
        o.step(1e-3);
        auto t3 = std::chrono::steady_clock::now();
        auto ms = [](auto a, auto b) { return std::chrono::duration<double, std::milli>(b - a).count(); };
        best = std::min(best, ms(t0, t3));
        printf("loss %.4f norm %.4f fb %.1f ste %.1f adam %.1f tok/s %.0f GF %.0f\n", loss, n, ms(t0, t1), ms(t1, t2), ms(t2, t3), B * 256 / ms(t0, t3) * 1e3, training_flops_per_token(c)*B*256/ms(t0,t3)/1e6);
    }
    printf("best %.1f ms\n", best);
}
