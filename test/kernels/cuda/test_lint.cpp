// What the memory-bound CUDA kernels ask of the memory system, counted by the emulator: not more than 1.1
// times the floor - each input read once, each output written once -, in whole sectors, without bank
// conflicts.
#include <cstdint>
#include <functional>
#include <string>

#include "dev/emulator/emulator.h"
#include "kernels/cuda/platform/cuda_options.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr int64_t M = 64, C = 512, F = 512, V = 4096;
constexpr DType type = DType::bfloat16;
constexpr int64_t sector = 32;

// The emulated device with its memory for one test.
struct Lint {
    std::unique_ptr<Backend> backend = make_emulated_cuda_backend(CudaOptions{});
    Bench bench{*backend};
    Random random{1};

    Tensor activations(int64_t rows, int64_t columns, DType dtype = type) {
        return bench.update("activations", random.normals(rows * columns, dtype), dtype, {rows, columns});
    }
    Tensor vector(int64_t n) { return bench.update("vector", random.normals(n), DType::float32, {n}); }
    Tensor tokens(int64_t vocabulary) {
        return bench.input("tokens", random.tokens(M, vocabulary), DType::int32, {M});
    }

    // floor: bytes that `call` has to move. waste: sectors that its launches touch in vain or twice, as a
    // part of all.
    void expect(int64_t floor, const std::function<void()>& call, double waste = 0) {
        emulator::Recorder recorder;
        call();
        emulator::Counters total;
        for (const emulator::LaunchReport& launch : recorder.launches()) total += launch;
        INFO(emulator::markdown(recorder.launches()));
        const auto ideal_sectors = static_cast<double>(total.ideal_load_sectors + total.ideal_store_sectors);
        const auto sectors = static_cast<double>(total.load_sectors + total.store_sectors);
        CHECK(ideal_sectors * sector <= 1.1 * static_cast<double>(floor));
        CHECK(sectors <= ideal_sectors * (1 + waste));
        CHECK(total.bank_conflicts() == 0);
    }
};

}  // namespace

TEST_CASE("embedding kernels move little more than their floor",
          "[cuda][lint][embedding_forward][embedding_backward]") {
    Lint lint;
    const HostParameter host = random_parameter(lint.random, V, C, Grid::integer4, C);
    const ComputeWeight& weight = place_weight(lint.bench, host, type, true);
    const Tensor y = lint.activations(M, C, DType::float32);
    const Tensor tokens = lint.tokens(V);
    lint.expect(M * C * (2 + 4),
                [&] { lint.backend->embedding_forward({.y = y, .tokens = tokens, .weight = weight}); });

    // Few tokens, so that their rows add up.
    const int64_t few = 16;
    const Tensor dq = lint.activations(few, C, DType::float32), scales = lint.vector(few),
                 often = lint.tokens(few);
    // Lists of keys begin anywhere in a sector.
    constexpr double keys_waste = 0.01;
    lint.expect(
        (M + 2 * few) * C * 4,
        [&] { lint.backend->embedding_backward({.dq = dq, .dy = y, .tokens = often, .row_scale = scales}); },
        keys_waste);
}

TEST_CASE("rmsnorm kernels move little more than their floor",
          "[cuda][lint][residual_rmsnorm_forward][rmsnorm_backward]") {
    Lint lint;
    const Tensor residual = lint.activations(M, C, DType::float32),
                 out = lint.activations(M, C, DType::float32);
    const Tensor branch = lint.activations(M, C), y = lint.activations(M, C);
    const Tensor scale = lint.vector(C), weight = lint.vector(C), dweight = lint.vector(C),
                 rstd = lint.vector(M);
    lint.expect(M * C * (4 + 2 + 4 + 2) + 2 * C * 4, [&] {
        lint.backend->residual_rmsnorm_forward({.residual_out = out,
                                                .y = y,
                                                .rstd = rstd,
                                                .residual_in = residual,
                                                .branch = branch,
                                                .column_scale = scale,
                                                .weight = weight,
                                                .epsilon = 1e-5f});
    });
    lint.expect(M * C * (4 + 2) + C * 4, [&] {
        lint.backend->residual_rmsnorm_forward(
            {.y = y, .rstd = rstd, .residual_in = residual, .weight = weight, .epsilon = 1e-5f});
    });
    void* workspace = lint.bench.workspace(lint.backend->rmsnorm_backward_workspace(M, C));
    lint.expect(M * C * (4 + 2 + 2 + 4 + 4) + 3 * C * 4, [&] {
        lint.backend->rmsnorm_backward({.d_residual = out,
                                        .dweight = dweight,
                                        .dz = branch,
                                        .dy = y,
                                        .residual = residual,
                                        .rstd = rstd,
                                        .weight = weight,
                                        .column_scale = scale,
                                        .accumulate_residual = true,
                                        .workspace = workspace});
    });
}

TEST_CASE("bias kernels move little more than their floor", "[cuda][lint][bias_forward][bias_backward]") {
    Lint lint;
    const Tensor z = lint.activations(M, C), scale = lint.vector(C), bias = lint.vector(C);
    void* workspace = lint.bench.workspace(lint.backend->bias_backward_workspace(M, C));
    // As of swiglu. Of the backward pass, two accesses of the sums of a tile of rows as well.
    constexpr double scales_waste = 0.15, sums_waste = 0.3;
    lint.expect(
        M * C * 4 + 8 * C * 4,
        [&] { lint.backend->bias_forward({.z = z, .column_scale = scale, .bias = bias}); }, scales_waste);
    lint.expect(
        M * C * 4 + 8 * C * 4,
        [&] {
            lint.backend->bias_backward(
                {.dz = z, .dbias = bias, .column_scale = scale, .workspace = workspace});
        },
        sums_waste);
    lint.expect(
        M * C * 2 + 8 * C * 4,
        [&] { lint.backend->bias_backward({.dz = z, .dbias = bias, .workspace = workspace}); }, sums_waste);
}

TEST_CASE("head norms move little more than their floor",
          "[cuda][lint][head_norm_forward][head_norm_backward]") {
    Lint lint;
    const AttentionShape shape{2, 64, 16, 8, 128};
    const int64_t rows = shape.rows(), columns = shape.qkv_columns();
    const Tensor x = lint.activations(rows, columns), y = lint.activations(rows, columns);
    const Tensor rstd = lint.activations(rows, shape.normed_heads(), DType::float32);
    const Tensor scale = lint.vector(columns), weight = lint.vector(shape.head_dim),
                 dquery = lint.vector(shape.head_dim), dkey = lint.vector(shape.head_dim);
    // Numbers of a row for each head, and as of swiglu.
    constexpr double waste = 0.15;
    lint.expect(
        rows * columns * 4 + rstd.bytes() + scale.bytes(),
        [&] {
            lint.backend->head_norm_forward({.y = y,
                                             .rstd = rstd,
                                             .x = x,
                                             .column_scale = scale,
                                             .query_weight = weight,
                                             .key_weight = weight,
                                             .epsilon = 1e-6f,
                                             .shape = shape});
        },
        waste);
    void* workspace = lint.bench.workspace(lint.backend->head_norm_backward_workspace(shape));
    const int64_t values = rows * shape.kv_heads * shape.head_dim;
    lint.expect(
        rows * columns * 6 - values * 2 + rstd.bytes() + scale.bytes(),
        [&] {
            lint.backend->head_norm_backward({.dx = y,
                                              .dquery_weight = dquery,
                                              .dkey_weight = dkey,
                                              .dy = y,
                                              .x = x,
                                              .rstd = rstd,
                                              .column_scale = scale,
                                              .query_weight = weight,
                                              .key_weight = weight,
                                              .workspace = workspace,
                                              .shape = shape});
        },
        waste);
}

TEST_CASE("rope kernels move little more than their floor", "[cuda][lint][rope_forward][rope_backward]") {
    Lint lint;
    const AttentionShape shape{2, 64, 8, 4, 64};
    const int64_t columns = shape.qkv_columns(), half = shape.head_dim / 2;
    const Tensor qkv = lint.activations(shape.rows(), columns), scale = lint.vector(columns);
    const Tensor cosines = lint.activations(shape.sequence, half, DType::float32);
    const Tensor sines = lint.activations(shape.sequence, half, DType::float32);
    const int64_t tables = 2 * shape.sequence * half * 4;
    lint.expect(shape.rows() * columns * 4 + tables + columns * 4, [&] {
        lint.backend->rope_forward(
            {.qkv = qkv, .cosines = cosines, .sines = sines, .column_scale = scale, .shape = shape});
    });
    lint.expect(shape.rows() * columns * 4 + tables + columns * 4, [&] {
        lint.backend->rope_backward(
            {.dqkv = qkv, .cosines = cosines, .sines = sines, .column_scale = scale, .shape = shape});
    });
    // Without scales the values stay as they are.
    const int64_t turned = columns - shape.kv_heads * shape.head_dim;
    lint.expect(shape.rows() * turned * 4 + tables, [&] {
        lint.backend->rope_forward({.qkv = qkv, .cosines = cosines, .sines = sines, .shape = shape});
    });
}

TEST_CASE("swiglu kernels move little more than their floor",
          "[cuda][lint][swiglu_forward][swiglu_backward]") {
    Lint lint;
    const Tensor gate_up = lint.activations(M, 2 * F), y = lint.activations(M, F), scale = lint.vector(2 * F);
    // A thread has eight columns: 16 bytes of activations, but two accesses of scales that share sectors.
    constexpr double scales_waste = 0.1;
    lint.expect(M * F * 3 * 2, [&] { lint.backend->swiglu_forward({.y = y, .gate_up = gate_up}); });
    lint.expect(M * F * 5 * 2,
                [&] { lint.backend->swiglu_backward({.d_gate_up = gate_up, .dy = y, .gate_up = gate_up}); });
    lint.expect(
        M * F * 3 * 2 + 2 * F * 4,
        [&] { lint.backend->swiglu_forward({.y = y, .gate_up = gate_up, .column_scale = scale}); },
        scales_waste);
    lint.expect(
        M * F * 5 * 2 + 2 * F * 4,
        [&] {
            lint.backend->swiglu_backward(
                {.d_gate_up = gate_up, .dy = y, .gate_up = gate_up, .column_scale = scale});
        },
        scales_waste);
}

TEST_CASE("cross_entropy reads the logits once", "[cuda][lint][cross_entropy]") {
    Lint lint;
    const Tensor logits = lint.activations(M, V, DType::float32), d_logits = lint.activations(M, V);
    const Tensor losses = lint.vector(M), scale = lint.vector(V), targets = lint.tokens(V);
    lint.expect(M * V * (4 + 2), [&] {
        lint.backend->cross_entropy({.losses = losses,
                                     .d_logits = d_logits,
                                     .logits = logits,
                                     .targets = targets,
                                     .gradient_factor = 1});
    });
    lint.expect(M * V * 4, [&] {
        lint.backend->cross_entropy(
            {.losses = losses, .logits = logits, .targets = targets, .gradient_factor = 1});
    });
    // The scales come out of caches, twice a row.
    lint.expect(M * V * (4 + 2 + 2 * 4), [&] {
        lint.backend->cross_entropy({.losses = losses,
                                     .d_logits = d_logits,
                                     .logits = logits,
                                     .targets = targets,
                                     .column_scale = scale,
                                     .gradient_factor = 1});
    });
    // In bfloat16 a thread has eight columns: the two accesses of their scales share sectors.
    constexpr double scales_waste = 0.7;
    const Tensor both = lint.activations(M, V);
    for (const Tensor& column_scale : {Tensor(), scale})
        lint.expect(
            M * V * (2 + 2 + (column_scale.empty() ? 0 : 2 * 4)),
            [&] {
                lint.backend->cross_entropy({.losses = losses,
                                             .d_logits = both,
                                             .logits = both,
                                             .targets = targets,
                                             .column_scale = column_scale,
                                             .gradient_factor = 1});
            },
            column_scale.empty() ? 0 : scales_waste);
}

TEST_CASE("sum reads its values once", "[cuda][lint][sum]") {
    Lint lint;
    const Tensor values = lint.vector(4096), total = lint.vector(1);
    lint.expect(4096 * 4, [&] { lint.backend->sum({.total = total, .values = values, .accumulate = true}); });
}
