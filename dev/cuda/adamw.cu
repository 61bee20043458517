// AdamW on all weights and scales of a model, and the new levels (kernels/operations.h, AdamwAndQuantize):
//     m <- beta1 m + (1 - beta1) g
//     v <- beta2 v + (1 - beta2) g²
//     u  = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)
//     w <- w - learning_rate (u + weight_decay w)
//     s <- max(smallest_scale, s (1 - scale_learning_rate u))
//     q = level(w / s)
//
//   levels in bfloat16
//     1 update, then quantize   three launches per tensor: weights are read twice, small tensors leave most of the card
//                               idle
//     2 fused per tensor        one launch each: a block per row, its scale first
//     3 adamw_and_quantize.cu   one launch for all tensors
//   packed codes
//     4 adamw_and_quantize.cu   an eighth of the bytes for the levels, at 2 bits
//
// The limit is the memory's: 16 bytes in and 12 out for each weight, and its level.
#include <cmath>
#include <span>

#include "dev/cuda/bench.h"
#include "kernels/codes.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr Grid benchmark_grid = Grid::quaternary;

// What AdamW keeps of each number of a tensor.
struct State {
    float* value;
    const float* gradient;
    float* first_moment;
    float* second_moment;
};

// relative: the step is a fraction of the value.
template <bool relative>
CU_DEVICE float adamw(const State& s, int64_t i, const AdamWConstants& u) {
    const float value = load(s.value + i), gradient = load(s.gradient + i);
    const float m = u.beta1 * load(s.first_moment + i) + (1.0f - u.beta1) * gradient;
    const float v = u.beta2 * load(s.second_moment + i) + (1.0f - u.beta2) * gradient * gradient;
    store(s.first_moment + i, m);
    store(s.second_moment + i, v);
    const float step = u.step_size * m / (sqrtf(v) * u.inverse_root + u.epsilon);
    const float updated = fmaxf(value * u.keep - (relative ? step * value : step), u.lowest);
    store(s.value + i, updated);
    return updated;
}

CU_DEVICE bfloat16 level_of(float weight, float scale) {
    return static_cast<bfloat16>(GridTraits<benchmark_grid>::level(weight / effective_scale(scale)));
}

// ---- 1: update, then quantize

template <bool relative>
__global__ void update_kernel(State state, AdamWConstants update, int64_t count) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) adamw<relative>(state, i, update);
}

// levels, weights: (rows, columns); scales: (rows).
__global__ void quantize_kernel(bfloat16* levels, float* effective, const float* weights, const float* scales,
                                int64_t count, int columns) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float scale = load(scales + i / columns);
    store(levels + i, level_of(load(weights + i), scale));
    if (i % columns == 0) store(effective + i / columns, effective_scale(scale));
}

// ---- 2: fused per tensor

// A block per row.
__global__ void update_and_quantize_kernel(bfloat16* levels, float* effective, State weights, State scales,
                                           AdamWConstants weight_update, AdamWConstants scale_update,
                                           int columns) {
    CU_SHARED(row_scale, float);
    const int64_t row = blockIdx.x;
    if (threadIdx.x == 0) {
        const float scale = adamw<true>(scales, row, scale_update);
        store(effective + row, effective_scale(scale));
        store_shared(&row_scale, scale);
    }
    block_sync();
    const float scale = load_shared(&row_scale);
    for (int c = static_cast<int>(threadIdx.x); c < columns; c += static_cast<int>(blockDim.x)) {
        const int64_t i = row * columns + c;
        store(levels + i, level_of(adamw<false>(weights, i, weight_update), scale));
    }
}

// ---- the program

AdamWStep benchmark_step() {
    AdamWStep step;
    step.learning_rate = 3e-3f;
    step.scale_learning_rate = 2e-4f;
    step.weight_decay = 0.1f;
    step.epsilon = 1e-6f;
    step.step = 41;
    step.scale_step = 7;
    return step;
}

constexpr unsigned threads = 256;

// A tensor with its optimizer state: value, gradient, moments.
struct Stepped {
    Numbers value, gradient, first_moment, second_moment;
    State state() const {
        return {value.tensor().as<float>(), gradient.tensor().as<float>(), first_moment.tensor().as<float>(),
                second_moment.tensor().as<float>()};
    }
};

struct Parameter {
    int64_t rows, columns;
    Stepped weights, scales;  // without scales: a vector that is not quantized
    ComputeWeight plain, packed;
    bool quantized() const { return !scales.value.tensor().empty(); }
    ParameterRows described(ComputeWeight& compute) const {
        ParameterRows p;
        p.rows = rows;
        p.columns = columns;
        p.master = weights.value.tensor().as<float>();
        p.gradient = weights.gradient.tensor().as<float>();
        p.first_moment = weights.first_moment.tensor().as<float>();
        p.second_moment = weights.second_moment.tensor().as<float>();
        p.decay = quantized();
        if (!quantized()) return p;
        p.grid = benchmark_grid;
        p.group = columns;
        p.scale = scales.value.tensor().as<float>();
        p.scale_gradient = scales.gradient.tensor().as<float>();
        p.scale_first_moment = scales.first_moment.tensor().as<float>();
        p.scale_second_moment = scales.second_moment.tensor().as<float>();
        p.compute = &compute;
        return p;
    }
};

class AdamW final : public Problem {
  public:
    AdamW(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          squares_(positives(DType::float32, {1})),
          weight_update_(constants_of_weights(step_, true)),
          vector_update_(constants_of_weights(step_, false)),
          scale_update_(constants_of_scales(step_)) {
        const int64_t width = sizes.at("width"), ffn = sizes.at("ffn");
        for (int64_t layer = 0; layer < sizes.at("layers"); ++layer) {
            add(1, width, false);
            add(3 * width, width, true);
            add(width, width, true);
            add(1, width, false);
            add(2 * ffn, width, true);
            add(width, ffn, true);
        }
        for (Parameter& p : parameters_) {
            plain_rows_.push_back(p.described(p.plain));
            packed_rows_.push_back(p.described(p.packed));
        }
    }

    std::vector<Operation> operations() override {
        double state = 0, levels = 0, codes = 0;
        for (const Parameter& p : parameters_) {
            state += static_cast<double>(p.rows * p.columns) * 7 * sizeof(float);
            if (!p.quantized()) continue;
            levels += static_cast<double>(p.rows * p.columns) * sizeof(bfloat16);
            codes += static_cast<double>(p.rows * code_row_bytes(p.columns, code_bits(benchmark_grid)));
        }
        Operation plain{
            .name = "levels in bfloat16",
            .bytes = state + levels,
            .reset = [this] { reset(); },
            .compare = [this] { return compare(false); },
            .variants = {},
        };
        plain.variants.push_back({"update, then quantize", [this] {
                                      for (const Parameter& p : parameters_) update_then_quantize(p);
                                  }});
        plain.variants.push_back({"fused per tensor", [this] {
                                      for (const Parameter& p : parameters_) fused(p);
                                  }});
        plain.variants.push_back({"adamw_and_quantize.cu", [this] { all_at_once(plain_rows_); }});
        Operation packed{
            .name = "packed codes",
            .bytes = state + codes,
            .reset = [this] { reset(); },
            .compare = [this] { return compare(true); },
            .variants = {{"adamw_and_quantize.cu", [this] { all_at_once(packed_rows_); }}},
        };
        return {plain, packed};
    }

  private:
    Stepped stepped(int64_t rows, int64_t columns, const Numbers& value) {
        return {value, normals(DType::float32, {rows, columns}, 0.01),
                normals(DType::float32, {rows, columns}, 0.01),
                positives(DType::float32, {rows, columns}, 1e-4)};
    }

    // A backend that has packed codes keeps levels for weights whose rows are looked up one by one.
    ComputeWeight compute_weight(int64_t rows, int64_t columns, bool plain) {
        ComputeWeight weight;
        weight.rows = rows;
        weight.columns = columns;
        weight.embedding = plain;
        weight.storage = memory(backend().compute_weight_bytes(rows, columns, weight.dtype, plain));
        weight.scale_storage = output(DType::float32, {rows}).as<float>();
        return weight;
    }

    void add(int64_t rows, int64_t columns, bool quantized) {
        Parameter p{rows, columns, stepped(rows, columns, normals(DType::float32, {rows, columns}, 0.05)),
                    {},   {},      {}};
        if (quantized) {
            p.scales = stepped(rows, 1, positives(DType::float32, {rows, 1}, 0.08));
            p.plain = compute_weight(rows, columns, true);
            p.packed = compute_weight(rows, columns, false);
        }
        parameters_.push_back(std::move(p));
    }

    void update_then_quantize(const Parameter& p) {
        const int64_t count = p.rows * p.columns;
        const State weights = p.weights.state(), scales = p.scales.state();
        CU_LAUNCH(update_kernel<false>, blocks_for(count, threads), threads, 0, stream(), weights,
                  p.quantized() ? weight_update_ : vector_update_, count);
        if (!p.quantized()) return;
        CU_LAUNCH(update_kernel<true>, blocks_for(p.rows, threads), threads, 0, stream(), scales,
                  scale_update_, p.rows);
        CU_LAUNCH(quantize_kernel, blocks_for(count, threads), threads, 0, stream(),
                  static_cast<bfloat16*>(p.plain.storage), p.plain.scale_storage, weights.value, scales.value,
                  count, static_cast<int>(p.columns));
    }

    void fused(const Parameter& p) {
        const int64_t count = p.rows * p.columns;
        if (p.quantized())
            CU_LAUNCH(update_and_quantize_kernel, static_cast<unsigned>(p.rows), threads, 0, stream(),
                      static_cast<bfloat16*>(p.plain.storage), p.plain.scale_storage, p.weights.state(),
                      p.scales.state(), weight_update_, scale_update_, static_cast<int>(p.columns));
        else
            CU_LAUNCH(update_kernel<false>, blocks_for(count, threads), threads, 0, stream(),
                      p.weights.state(), vector_update_, count);
    }

    void all_at_once(std::span<const ParameterRows> rows) {
        backend().adamw_and_quantize({.parameters = rows, .step = step_, .squares = squares_.tensor()});
    }

    // Every step starts from the same state.
    void reset() {
        for (const Parameter& p : parameters_) {
            for (const Stepped* stepped : {&p.weights, &p.scales})
                for (const Numbers* numbers :
                     {&stepped->value, &stepped->first_moment, &stepped->second_moment})
                    if (!numbers->tensor().empty()) upload(*numbers);
            if (!p.quantized()) continue;
            poison(Tensor(p.plain.storage, DType::bfloat16, {p.rows, p.columns}));
            poison(Tensor(p.plain.scale_storage, DType::float32, {p.rows}));
            poison(Tensor(p.packed.scale_storage, DType::float32, {p.rows}));
        }
    }

    Comparison compare(bool packed) {
        Comparison result;
        for (const Parameter& p : parameters_) {
            for (int64_t row : sample(p.rows)) {
                compare_state(result, p.weights, row, step_.learning_rate, step_.step,
                              p.quantized() ? step_.weight_decay : 0.0f, false);
                if (!p.quantized()) continue;
                compare_state(result, p.scales, row, step_.scale_learning_rate, step_.scale_step, 0, true);
                compare_levels(result, p, row, packed);
            }
        }
        return result;
    }

    // float32 keeps every number to a few roundings of the terms of its sums, which may cancel.
    void compare_state(Comparison& result, const Stepped& stepped, int64_t row, double learning_rate,
                       int64_t t, double decay, bool relative) {
        reference::AdamWState expected{stepped.value.rows(row, 1), stepped.first_moment.rows(row, 1),
                                       stepped.second_moment.rows(row, 1)};
        reference::adamw(expected, stepped.gradient.rows(row, 1),
                         {learning_rate, step_.beta1, step_.beta2, step_.epsilon, decay, 1, t, relative});
        const Array value = read(stepped.value.tensor().rows(row, 1));
        const Array first = read(stepped.first_moment.tensor().rows(row, 1));
        const Array second = read(stepped.second_moment.tensor().rows(row, 1));
        constexpr double slack = 0x1p-20;
        const double correction1 = 1 - std::pow(step_.beta1, static_cast<double>(t));
        const double correction2 = 1 - std::pow(step_.beta2, static_cast<double>(t));
        for (int64_t i = 0; i < std::ssize(value); ++i) {
            const int64_t element = row * std::ssize(value) + i;
            const double m = expected.first_moment[i], v = expected.second_moment[i];
            const double m_terms = step_.beta1 * std::abs(stepped.first_moment[element]) +
                                   (1 - step_.beta1) * std::abs(stepped.gradient[element]);
            const double before = std::abs(stepped.value[element]);
            const double longest_step =
                learning_rate * m_terms / correction1 / (std::sqrt(v / correction2) + step_.epsilon);
            const double after = relative ? std::max(expected.value[i], static_cast<double>(smallest_scale))
                                          : expected.value[i];
            result.add(value[i], after, before + longest_step, DType::float32, slack);
            result.add(first[i], m, m_terms, DType::float32, slack);
            result.add(second[i], v, v, DType::float32, slack);
        }
    }

    // Exactly the levels of the device's own weights and scales.
    void compare_levels(Comparison& result, const Parameter& p, int64_t row, bool packed) {
        const Array weights = read(p.weights.value.tensor().rows(row, 1));
        const double scale = reference::effective_scale(read(p.scales.value.tensor().rows(row, 1))[0]);
        const ComputeWeight& weight = packed ? p.packed : p.plain;
        result.add_exact(read(Tensor(weight.scale_storage, DType::float32, {p.rows}).rows(row, 1))[0], scale);
        const Array levels =
            packed ? unpacked(p, row)
                   : read(Tensor(weight.storage, DType::bfloat16, {p.rows, p.columns}).rows(row, 1));
        for (int64_t c = 0; c < p.columns; ++c)
            result.add_exact(levels[c],
                             reference::level(benchmark_grid, reference::ratio(weights[c], scale)));
    }

    Array unpacked(const Parameter& p, int64_t row) {
        constexpr int bits = code_bits(benchmark_grid);
        std::vector<unsigned char> bytes(code_row_bytes(p.columns, bits));
        backend().copy_to_host(
            bytes.data(), static_cast<const char*>(p.packed.storage) + row * code_row_bytes(p.columns, bits),
            std::ssize(bytes));
        Array levels;
        for (int64_t c = 0; c < p.columns; ++c) {
            const uint32_t code = bytes[c * bits / 8] >> (c * bits % 8) & code_mask(benchmark_grid);
            levels.push_back(level_of_code<benchmark_grid>(code));
        }
        return levels;
    }

    AdamWStep step_ = benchmark_step();
    Numbers squares_;
    AdamWConstants weight_update_, vector_update_, scale_update_;
    std::vector<Parameter> parameters_;
    std::vector<ParameterRows> plain_rows_, packed_rows_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark(
        {"adamw",
         "AdamW on all weights and scales of a model, and the levels of its weights (2 bits).",
         {{"layers", 8, {2, 1, 1}}, {"width", 1024, {33, 1, 132}}, {"ffn", 2816, {47, 3, 64}}},
         [](CudaBackend& backend, const Sizes& sizes) { return std::make_unique<AdamW>(backend, sizes); }},
        argc, argv);
}
