// SwiGLU (kernels/operations.h) in bfloat16, with [gate | up] = column_scale ∘ gate_up and σ(x) = 1 / (1 + e^-x):
//     forward:   y = gate σ(gate) up
//     backward:  d_up = dy gate σ(gate), d_gate = dy up σ(gate) (1 + gate (1 - σ(gate))), times column_scale, in place
//
//   forward
//     1 one number a thread   a row's numbers side by side
//     2 swiglu.cu             16 bytes an access, tiles of 16 rows whose scales are read once, two rows under way
//     3 short tiles, base 2   tiles of 8 rows, 64 registers at most, e^x in one instruction and a product
//   backward
//     4 swiglu.cu
//     5 short tiles, base 2
//
// The limit is the memory's: 6 bytes of each number of y, 10 backward. An H100 measured 86% of its bandwidth for 2 (134 us
// for 32,768 rows of 2048) and 82% for 4 (236 us); copies reach some 92%. What 3 and 5 are about: 4 has 70 to 80
// registers, so three blocks of 256 threads a multiprocessor, and its 2048 blocks take 5.2 turns of 396: the last leaves
// most of the card idle. Four blocks of 8 rows take 7.8 turns of 528. Instructions a number (sm_90a): forward 33, with
// 3 29, which take half of the time that its bytes take; backward 46, 39. Enough is under way in all: 48 to 64 KB a
// multiprocessor, of which 15 would do.
#include <cmath>

#include "dev/cuda/bench.h"
#include "kernels/cuda/rows/row_tile.cuh"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 256;

struct Swiglu {
    bfloat16* y;                // (M, F)
    bfloat16* gate_up;          // (M, 2F); backward: also d_gate_up
    const bfloat16* dy;         // (M, F)
    const float* column_scale;  // (2F) or null
    int64_t rows, columns;      // M, F
};

__global__ void __launch_bounds__(threads) one_number(Swiglu p) {
    const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
    if (i >= p.rows * p.columns) return;
    const int64_t row = i / p.columns, column = i % p.columns;
    const bfloat16* in = p.gate_up + row * 2 * p.columns + column;
    float gate = static_cast<float>(load(in)), up = static_cast<float>(load(in + p.columns));
    if (p.column_scale != nullptr) {
        gate *= load(p.column_scale + column);
        up *= load(p.column_scale + p.columns + column);
    }
    store(p.y + i, static_cast<bfloat16>(gate / (1.0f + expf(-gate)) * up));
}

CU_DEVICE float sigmoid(float x) {
    constexpr float log2_e = 1.44269504088896341f;
    return 1.0f / (1.0f + flushed_exp2(-x * log2_e));
}

constexpr int tile_rows = 8;

// Rows tile_rows * blockIdx.x ..., columns width * threads * blockIdx.y ... of each half.
template <bool backward, int width>
__global__ void __launch_bounds__(threads, 4) short_tiles(Swiglu p) {
    const int64_t column = (int64_t{blockIdx.y} * threads + threadIdx.x) * width;
    if (column >= p.columns) return;
    const float* scales = p.column_scale != nullptr ? p.column_scale + column : nullptr;
    float gate_scale[width], up_scale[width];
    load_scale(gate_scale, scales);
    load_scale(up_scale, scales != nullptr ? scales + p.columns : nullptr);
    const int64_t tile = int64_t{blockIdx.x} * tile_rows;
    constexpr int in_flight = backward ? 1 : 2;  // rows, in 64 registers
    for (int64_t row = tile; row < tile + tile_rows; row += in_flight) {
        Vector<bfloat16, width> gate[in_flight], up[in_flight], gradient[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if (row + i >= p.rows) continue;
            gate[i] = load_vector<width>(p.gate_up + (row + i) * 2 * p.columns + column);
            up[i] = load_vector<width>(p.gate_up + (row + i) * 2 * p.columns + p.columns + column);
            if constexpr (backward) gradient[i] = load_vector<width>(p.dy + (row + i) * p.columns + column);
        }
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if (row + i >= p.rows) return;
            Vector<bfloat16, width> first, second;
            CU_UNROLL
            for (int j = 0; j < width; ++j) {
                const float g = gate_scale[j] * static_cast<float>(gate[i][j]);
                const float u = up_scale[j] * static_cast<float>(up[i][j]);
                const float s = sigmoid(g);
                if constexpr (backward) {
                    const float d = static_cast<float>(gradient[i][j]);
                    first[j] = static_cast<bfloat16>(d * u * s * (1.0f + g * (1.0f - s)) * gate_scale[j]);
                    second[j] = static_cast<bfloat16>(d * g * s * up_scale[j]);
                } else {
                    first[j] = static_cast<bfloat16>(g * s * u);
                }
            }
            if constexpr (backward) {
                bfloat16* out = p.gate_up + (row + i) * 2 * p.columns + column;
                store_vector<width>(out, first);
                store_vector<width>(out + p.columns, second);
            } else {
                store_vector<width>(p.y + (row + i) * p.columns + column, first);
            }
        }
    }
}

// ---- the program

class SwigluProblem final : public Problem {
  public:
    SwigluProblem(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          M_(sizes.at("rows")),
          F_(sizes.at("columns")),
          gate_up_(normals(DType::bfloat16, {M_, 2 * F_})),
          dy_(normals(DType::bfloat16, {M_, F_})),
          column_scale_(positives(DType::float32, {2 * F_})),
          y_(output(DType::bfloat16, {M_, F_})),
          scale_(sizes.at("scales") != 0 ? column_scale_.tensor() : Tensor()) {}

    std::vector<Operation> operations() override {
        const Tensor gate_up = gate_up_.tensor();
        const Swiglu p{y_.as<bfloat16>(),
                       gate_up.as<bfloat16>(),
                       dy_.tensor().as<bfloat16>(),
                       scale_.as<float>(),
                       M_,
                       F_};
        const auto bytes = static_cast<double>(y_.bytes());
        return {
            {.name = "forward",
             .bytes = 3 * bytes,
             .reset =
                 [this] {
                     poison(y_);
                     upload(gate_up_);
                 },
             .compare = [this] { return compare_forward(); },
             .variants = {{"one number a thread",
                           [=, this] {
                               CU_LAUNCH(one_number, blocks_for(M_ * F_, threads), threads, 0, stream(), p);
                           }},
                          {"swiglu.cu",
                           [=, this] {
                               backend().swiglu_forward(
                                   {.y = y_, .gate_up = gate_up, .column_scale = scale_});
                           }},
                          {"short tiles, base 2", [=, this] { launch<false>(p); }}}},
            {.name = "backward, in place",
             .bytes = 5 * bytes,
             .reset = [this] { upload(gate_up_); },
             .compare = [this] { return compare_backward(); },
             .variants = {{"swiglu.cu",
                           [=, this] {
                               backend().swiglu_backward({.d_gate_up = gate_up,
                                                          .dy = dy_.tensor(),
                                                          .gate_up = gate_up,
                                                          .column_scale = scale_});
                           }},
                          {"short tiles, base 2", [=, this] { launch<true>(p); }}}},
        };
    }

  private:
    template <bool backward>
    void launch(const Swiglu& p) {
        constexpr int wide = 8;
        with_width<wide>(rows_aligned<wide>(F_, p.y, p.gate_up, p.dy), [&]<int width>() {
            const dim3 grid(blocks_for(M_, tile_rows), blocks_for(F_, threads * width));
            CU_LAUNCH((short_tiles<backward, width>), grid, threads, 0, stream(), p);
        });
    }

    Array scales() const { return scale_.empty() ? Array() : column_scale_.rows(0, 2 * F_); }

    // Exponentials of float32 are good to a few units in the last place of numbers of about 10.
    static constexpr double slack = 0x1p-19;

    Comparison compare_forward() {
        Comparison result;
        for (int64_t m : sample(M_))
            result.add(
                read(y_.rows(m, 1)),
                reference::swiglu_forward(reference::scale_columns(gate_up_.rows(m, 1), scales()), 1, F_),
                DType::bfloat16, slack);
        return result;
    }
    Comparison compare_backward() {
        Comparison result;
        for (int64_t m : sample(M_))
            result.add(
                read(gate_up_.tensor().rows(m, 1)),
                reference::swiglu_backward(
                    dy_.rows(m, 1), reference::scale_columns(gate_up_.rows(m, 1), scales()), scales(), 1, F_),
                DType::bfloat16, slack);
        return result;
    }

    int64_t M_, F_;
    Numbers gate_up_, dy_, column_scale_;
    Tensor y_, scale_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark(
        {"swiglu",
         "SwiGLU of bfloat16 activations.",
         {{"rows", 32768, {67, 1, 9}}, {"columns", 2048, {77, 5, 2056}}, {"scales", 0, {1, 0, 1}}},
         [](CudaBackend& backend, const Sizes& sizes) {
             return std::make_unique<SwigluProblem>(backend, sizes);
         }},
        argc, argv);
}
