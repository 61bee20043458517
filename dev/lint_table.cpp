// The performance lint of all kernels, as a table: what each launch moves and multiplies against what its
// operation needs at least, how well its accesses coalesce, and how often shared memory serves them one after
// the other. Counted by the emulator, so no GPU is needed and the numbers are exact.
//
//     build/train_qat_lint > dev/results/lint.md
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dev/emulator/emulator.h"
#include "kernels/backend.h"
#include "kernels/cuda/platform/cuda_options.h"
#include "kernels/device_memory.h"

namespace train_qat {
namespace {

// One block of a small model, with sizes that are whole vectors but not all whole tiles.
constexpr int64_t B = 2, T = 192, M = B * T, C = 512, H = 8, G = 4, D = 64, F = 1408, V = 4000;

class LintTable {
  public:
    explicit LintTable(Backend& backend) : backend_(backend) {}

    Tensor tensor(DType dtype, std::initializer_list<int64_t> shape) {
        Tensor view(nullptr, dtype, shape);
        memory_.emplace_back(backend_, view.bytes());
        view.data = memory_.back().data();
        return view;
    }
    Tensor narrow(std::initializer_list<int64_t> shape) { return tensor(DType::bfloat16, shape); }
    Tensor wide(std::initializer_list<int64_t> shape) { return tensor(DType::float32, shape); }
    void* bytes(int64_t count) {
        memory_.emplace_back(backend_, count);
        return memory_.back().data();
    }
    Tensor tokens() {
        const Tensor view = tensor(DType::int32, {M});
        std::vector<int32_t> values(M);
        for (int64_t m = 0; m < M; ++m) values[m] = static_cast<int32_t>(m * 7919 % V);
        backend_.copy_to_device(view.data, values.data(), view.bytes());
        return view;
    }

    // A line per launch of `work`. flops, moved: what the operation needs at least; 0: it has no such part.
    void add(const char* operation, double flops, int64_t moved, const std::function<void()>& work) {
        emulator::Recorder recorder;
        work();
        double all_flops = 0, all_bytes = 0;
        for (const emulator::LaunchReport& launch : recorder.launches()) {
            all_flops += static_cast<double>(launch.tensor_core_flops);
            all_bytes += 32.0 * static_cast<double>(launch.load_sectors + launch.store_sectors);
        }
        bool first = true;
        for (const emulator::LaunchReport& launch : recorder.launches()) {
            std::printf("| %s | `%s` | %lld x %lld | %lld | %s | %s | %s | %s | %s |\n",
                        first ? operation : "", short_name(launch.kernel).c_str(), blocks(launch.grid),
                        blocks(launch.block), static_cast<long long>(launch.shared_bytes),
                        first && flops > 0 ? ratio(all_flops, flops).c_str() : "",
                        first && moved > 0 ? ratio(all_bytes, static_cast<double>(moved)).c_str() : "",
                        share(launch.load_sectors + launch.store_sectors,
                              launch.ideal_load_sectors + launch.ideal_store_sectors)
                            .c_str(),
                        share(launch.shared_wavefronts, launch.ideal_shared_wavefronts).c_str(),
                        share(launch.ldmatrix_wavefronts, launch.ideal_ldmatrix_wavefronts).c_str());
            first = false;
        }
    }

  private:
    static long long blocks(const dim3& size) { return static_cast<long long>(size.x) * size.y * size.z; }
    static std::string ratio(double actual, double floor) {
        char text[32];
        std::snprintf(text, sizeof text, "%.2f", actual / floor);
        return text;
    }
    static std::string share(int64_t actual, int64_t ideal) {
        return ideal == 0 ? "" : ratio(static_cast<double>(actual), static_cast<double>(ideal));
    }
    static std::string short_name(std::string name) {
        if (name.front() == '(' && name.back() == ')') name = name.substr(1, name.size() - 2);
        return name.substr(0, name.find('<'));
    }

    Backend& backend_;
    std::vector<DeviceMemory> memory_;
};

ComputeWeight make_weight(LintTable& table, Backend& backend, int64_t rows, int64_t columns, bool embedding) {
    ComputeWeight weight;
    weight.rows = rows;
    weight.columns = columns;
    weight.embedding = embedding;
    weight.storage = table.bytes(backend.compute_weight_bytes(rows, columns, DType::bfloat16, embedding));
    weight.scale_storage = table.wide({rows}).as<float>();
    return weight;
}

ParameterRows make_parameter(LintTable& table, ComputeWeight& weight, Grid grid) {
    ParameterRows p;
    p.rows = weight.rows;
    p.columns = p.group = weight.columns;
    for (float** matrix : {&p.master, &p.gradient, &p.first_moment, &p.second_moment})
        *matrix = table.wide({p.rows, p.columns}).as<float>();
    for (float** vector : {&p.scale, &p.scale_gradient, &p.scale_first_moment, &p.scale_second_moment})
        *vector = table.wide({p.rows}).as<float>();
    p.grid = grid;
    p.compute = &weight;
    return p;
}

void add_matmuls(LintTable& table, Backend& backend, const char* kind, Grid grid, double weight_bytes) {
    ComputeWeight weight = make_weight(table, backend, 2 * F, C, false);
    const ParameterRows parameter = make_parameter(table, weight, grid);
    backend.quantize({.parameters = {&parameter, 1}});
    const Tensor x = table.narrow({M, C}), z = table.narrow({M, 2 * F}), dq = table.wide({2 * F, C});
    const double flops = 2.0 * M * C * 2 * F;
    const auto moved = static_cast<int64_t>(2 * (M * C + M * 2 * F) + weight_bytes * 2 * F * C);
    table.add((std::string("matmul_forward, ") + kind).c_str(), flops, moved,
              [&] { backend.matmul_forward({.z = z, .x = x, .weight = weight}); });
    table.add((std::string("matmul_input_gradient, ") + kind).c_str(), flops, moved,
              [&] { backend.matmul_input_gradient({.dx = x, .dz = z, .weight = weight}); });
    if (grid == Grid::none)
        table.add("matmul_weight_gradient", flops, 2 * (M * C + M * 2 * F) + 8 * 2 * F * C,
                  [&] { backend.matmul_weight_gradient({.dq = dq, .dz = z, .x = x, .accumulate = true}); });
}

void add_layers(LintTable& table, Backend& backend) {
    const Tensor residual = table.wide({M, C}), d_residual = table.wide({M, C}), y = table.narrow({M, C}),
                 branch = table.narrow({M, C}), rstd = table.wide({M}), weight = table.wide({C}),
                 dweight = table.wide({C}), scale = table.wide({C});
    void* workspace = table.bytes(backend.rmsnorm_backward_workspace(M, C));
    table.add("residual_rmsnorm_forward", 0, M * C * (4 + 4 + 2 + 2), [&] {
        backend.residual_rmsnorm_forward({.residual_out = residual,
                                          .y = y,
                                          .rstd = rstd,
                                          .residual_in = residual,
                                          .branch = branch,
                                          .column_scale = scale,
                                          .weight = weight,
                                          .epsilon = 1e-5f});
    });
    table.add("rmsnorm_backward", 0, M * C * (2 + 4 + 4 + 4 + 2), [&] {
        backend.rmsnorm_backward({.d_residual = d_residual,
                                  .dweight = dweight,
                                  .dz = branch,
                                  .dy = y,
                                  .residual = residual,
                                  .rstd = rstd,
                                  .weight = weight,
                                  .column_scale = scale,
                                  .accumulate_residual = true,
                                  .accumulate_weight = true,
                                  .workspace = workspace});
    });
    void* bias_workspace = table.bytes(backend.bias_backward_workspace(M, C));
    table.add("bias_forward", 0, M * C * 4,
              [&] { backend.bias_forward({.z = y, .column_scale = scale, .bias = weight}); });
    table.add("bias_backward", 0, M * C * 4, [&] {
        backend.bias_backward(
            {.dz = y, .dbias = dweight, .column_scale = scale, .workspace = bias_workspace});
    });
    const Tensor gate_up = table.narrow({M, 2 * F}), hidden = table.narrow({M, F}),
                 ffn_scale = table.wide({2 * F});
    table.add("swiglu_forward", 0, M * F * 6,
              [&] { backend.swiglu_forward({.y = hidden, .gate_up = gate_up, .column_scale = ffn_scale}); });
    table.add("swiglu_backward", 0, M * F * 10, [&] {
        backend.swiglu_backward(
            {.d_gate_up = gate_up, .dy = hidden, .gate_up = gate_up, .column_scale = ffn_scale});
    });
    const Tensor logits = table.wide({M, V}), d_logits = table.narrow({M, V}), losses = table.wide({M}),
                 targets = table.tokens(), head_scale = table.wide({V});
    table.add("cross_entropy", 0, M * V * 6, [&] {
        backend.cross_entropy({.losses = losses,
                               .d_logits = d_logits,
                               .logits = logits,
                               .targets = targets,
                               .column_scale = head_scale,
                               .gradient_factor = 1.0f});
    });
    ComputeWeight embedding = make_weight(table, backend, V, C, true);
    const Tensor dq = table.wide({V, C});
    table.add("embedding_forward", 0, M * C * 6,
              [&] { backend.embedding_forward({.y = residual, .tokens = targets, .weight = embedding}); });
    table.add("embedding_backward", 0, M * C * 12, [&] {
        backend.embedding_backward({.dq = dq, .dy = d_residual, .tokens = targets, .row_scale = head_scale});
    });
    table.add("sum", 0, M * 4, [&] { backend.sum({.total = table.wide({1}), .values = losses}); });
}

void add_attention(LintTable& table, Backend& backend, int64_t head_dim) {
    const int64_t kv_heads = G * D / head_dim, width = H / G * kv_heads * head_dim;
    const AttentionShape shape{B, T, H / G * kv_heads, kv_heads, head_dim};
    const int64_t qkv_columns = shape.qkv_columns();
    const Tensor qkv = table.narrow({M, qkv_columns}), dqkv = table.narrow({M, qkv_columns}),
                 y = table.narrow({M, width}), dy = table.narrow({M, width}),
                 lse = table.wide({B, shape.heads, T}), scale = table.wide({qkv_columns}),
                 angles = table.wide({T, head_dim / 2});
    void* workspace = table.bytes(backend.attention_backward_workspace(shape));
    const double flops = 2.0 * B * T * T * width;  // of the two products, half of it hidden by the mask
    const std::string size = ", D = " + std::to_string(head_dim);
    const Tensor norm_weight = table.wide({head_dim}), dnorm_weight = table.wide({head_dim}),
                 rstd = table.wide({M, shape.normed_heads()});
    void* norm_workspace = table.bytes(backend.head_norm_backward_workspace(shape));
    table.add(("head_norm_forward" + size).c_str(), 0, M * qkv_columns * 4 + rstd.bytes(), [&] {
        backend.head_norm_forward({.y = dqkv,
                                   .rstd = rstd,
                                   .x = qkv,
                                   .column_scale = scale,
                                   .query_weight = norm_weight,
                                   .key_weight = norm_weight,
                                   .epsilon = 1e-6f,
                                   .shape = shape});
    });
    table.add(("head_norm_backward" + size).c_str(), 0,
              M * (qkv_columns * 6 - shape.kv_heads * head_dim * 2) + rstd.bytes(), [&] {
                  backend.head_norm_backward({.dx = dqkv,
                                              .dquery_weight = dnorm_weight,
                                              .dkey_weight = dnorm_weight,
                                              .dy = dqkv,
                                              .x = qkv,
                                              .rstd = rstd,
                                              .column_scale = scale,
                                              .query_weight = norm_weight,
                                              .key_weight = norm_weight,
                                              .workspace = norm_workspace,
                                              .shape = shape});
              });
    table.add(("rope_forward" + size).c_str(), 0, M * qkv_columns * 4, [&] {
        backend.rope_forward(
            {.qkv = qkv, .cosines = angles, .sines = angles, .column_scale = scale, .shape = shape});
    });
    table.add(("rope_backward" + size).c_str(), 0, M * qkv_columns * 4, [&] {
        backend.rope_backward(
            {.dqkv = dqkv, .cosines = angles, .sines = angles, .column_scale = scale, .shape = shape});
    });
    table.add(("attention_forward" + size).c_str(), flops, 2 * (M * qkv_columns + M * width),
              [&] { backend.attention_forward({.y = y, .log_sum_exp = lse, .qkv = qkv, .shape = shape}); });
    table.add(("attention_backward" + size).c_str(), 2.5 * flops, 4 * M * qkv_columns + 2 * M * width, [&] {
        backend.attention_backward({.dqkv = dqkv,
                                    .dy = dy,
                                    .qkv = qkv,
                                    .y = y,
                                    .log_sum_exp = lse,
                                    .shape = shape,
                                    .workspace = workspace});
    });
}

void add_optimizer(LintTable& table, Backend& backend) {
    ComputeWeight weight = make_weight(table, backend, F, C, false);
    const ParameterRows parameter = make_parameter(table, weight, Grid::integer4);
    const Tensor squares = table.wide({1});
    AdamWStep step;
    step.learning_rate = step.scale_learning_rate = 1e-3f;
    step.clip_norm = 1;
    table.add("quantize, 4 bits", 0, F * C * 9 / 2, [&] {
        backend.quantize({.parameters = {&parameter, 1}});
    });
    table.add("initialize_scales", 0, F * C * 4, [&] {
        backend.initialize_scales({.parameters = {&parameter, 1}});
    });
    table.add("ste_backward_and_norm", 0, F * C * 12, [&] {
        backend.ste_backward_and_norm({.parameters = {&parameter, 1}, .squares = squares});
    });
    table.add("adamw_and_quantize, 4 bits", 0, F * C * 57 / 2, [&] {
        backend.adamw_and_quantize({.parameters = {&parameter, 1}, .step = step, .squares = squares});
    });
}

void print_table() {
    CudaOptions options;
    options.qat_gemm = QatGemm::fused;
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(options);
    LintTable table(*backend);
    std::printf(
        "# What the kernels move, multiply and wait for\n\n"
        "`build/train_qat_lint > dev/results/lint.md`; counted by the emulator on one block of a small "
        "model: M = "
        "%lld rows "
        "(B %lld, T %lld),\nC %lld, %lld query and %lld key/value heads, F %lld, V %lld, bfloat16. All "
        "columns but "
        "the first four are actual / least:\n\n"
        "- *FLOP*: tensor-core operations against those of the product itself (tails of tiles, and "
        "recomputation in "
        "attention)\n"
        "- *bytes*: what loads and stores ask for against every input once and every output once. Tiled "
        "products "
        "read their\n  operands several times, from the L2 cache mostly\n"
        "- *sectors*: 32-byte sectors touched against those that the bytes fill (coalescing)\n"
        "- *shared*, *ldmatrix*: wavefronts of shared memory against those without bank conflicts\n\n"
        "| operation | kernel | blocks x threads | shared bytes | FLOP | bytes | sectors | shared | ldmatrix "
        "|\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---:|\n",
        static_cast<long long>(M), static_cast<long long>(B), static_cast<long long>(T),
        static_cast<long long>(C), static_cast<long long>(H), static_cast<long long>(G),
        static_cast<long long>(F), static_cast<long long>(V));
    add_matmuls(table, *backend, "bfloat16", Grid::none, 2);
    add_matmuls(table, *backend, "1-bit codes", Grid::binary, 0.125);
    add_matmuls(table, *backend, "2-bit codes", Grid::quaternary, 0.25);
    add_matmuls(table, *backend, "4-bit codes", Grid::integer4, 0.5);
    add_matmuls(table, *backend, "8-bit codes", Grid::integer8, 1);
    add_layers(table, *backend);
    for (int64_t head_dim : {16, 32, 64, 96, 128}) add_attention(table, *backend, head_dim);
    add_optimizer(table, *backend);
}

}  // namespace
}  // namespace train_qat

int main() {
    train_qat::print_table();
}
