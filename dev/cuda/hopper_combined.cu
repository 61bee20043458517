// A matmul of bfloat16 numbers and what follows it, by Hopper's own instructions:
//     RoPE     qkv = rope(column_scale ∘ (x qᵀ))
//     SwiGLU   gate_up = x qᵀ, y = swiglu(column_scale ∘ gate_up)
//
//     1 cuBLASLt, then a pass         or our matmul of all cards: what training does by itself
//     2 Hopper's matmul, then a pass
//     3 one kernel, 128 x 128 tiles
//     4 one kernel, 128 x 256 tiles
//
// `bytes` are those of the product's operands and of all outputs, once: what 3 and 4 move. Scales are those of a quantized layer.
// For cards of compute capability 9.0.
#include "dev/cuda/bench.h"
#include "kernels/cuda/hopper_matmul/hopper_combined.h"
#include "kernels/cuda/hopper_matmul/hopper_matmul.h"
#include "kernels/cuda/platform/hopper_device.h"
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

class HopperCombined final : public Problem {
  public:
    HopperCombined(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          shape_{sizes.at("batch"), sizes.at("sequence"), sizes.at("heads"), sizes.at("kv_heads"),
                 sizes.at("head_dim")},
          M_(shape_.rows()),
          K_(sizes.at("inputs")),
          F_(sizes.at("ffn")),
          N_(shape_.qkv_columns()),
          x_(normals(DType::bfloat16, {M_, K_})),
          rope_(*this, N_, K_),
          swiglu_(*this, 2 * F_, K_),
          angles_(reference::rope_tables(shape_.sequence, shape_.head_dim, 10000)),
          cosines_(table(angles_.cosines)),
          sines_(table(angles_.sines)),
          y_(output(DType::bfloat16, {M_, F_})) {
        require_hopper(backend.device(), "hopper_combined", "use such a card");
        others_ = make_dense_matmul(backend.device());
        hopper_ = make_hopper_matmul(backend.device(), make_dense_matmul(backend.device()));
    }

    std::vector<Operation> operations() override {
        Operation rope = operation("RoPE", rope_, 0), swiglu = operation("SwiGLU", swiglu_, y_.bytes());
        for (DenseMatmul* dense : {others_.get(), hopper_.get()}) {
            const std::string name = std::string(dense->name()) + ", then a pass";
            rope.variants.push_back({name, [=, this] {
                                         multiply(*dense, rope_);
                                         rope_forward(backend().device(), rope_arguments().rope);
                                     }});
            swiglu.variants.push_back({name, [=, this] {
                                           multiply(*dense, swiglu_);
                                           swiglu_forward(backend().device(), swiglu_arguments().swiglu);
                                       }});
        }
        for (const int tile : {128, 256}) {
            const std::string name = "one kernel, 128 x " + std::to_string(tile) + " tiles";
            rope.variants.push_back(
                {name,
                 [=, this] { hopper_matmul_rope_forward(backend().device(), rope_arguments(), tile); }});
            swiglu.variants.push_back(
                {name,
                 [=, this] { hopper_matmul_swiglu_forward(backend().device(), swiglu_arguments(), tile); }});
        }
        rope.compare = [this] { return compare_rope(); };
        swiglu.compare = [this] { return compare_swiglu(); };
        return {rope, swiglu};
    }

  private:
    // A linear layer of N outputs.
    struct Layer {
        Layer(HopperCombined& problem, int64_t N, int64_t K)
            : q(problem.normals(DType::bfloat16, {N, K})),
              scale(problem.positives(DType::float32, {N}, 0.1)),
              z(problem.output(DType::bfloat16, {problem.M_, N})) {
            weight.rows = N;
            weight.columns = K;
            weight.storage = q.tensor().data;
            weight.scale_storage = scale.tensor().as<float>();
            weight.scaled = true;
        }
        Numbers q, scale;
        Tensor z;
        ComputeWeight weight;
    };

    Tensor table(const Array& values) {
        const Tensor tensor = output(DType::float32, {shape_.sequence, shape_.head_dim / 2});
        const std::vector<float> numbers(values.begin(), values.end());
        backend().copy_to_device(tensor.data, numbers.data(), tensor.bytes());
        return tensor;
    }

    Operation operation(const char* name, const Layer& layer, int64_t more_bytes) {
        return {.name = name,
                .bytes = static_cast<double>(x_.tensor().bytes() + layer.q.tensor().bytes() +
                                             layer.z.bytes() + more_bytes),
                .flops = 2.0 * static_cast<double>(M_) * static_cast<double>(layer.weight.rows) *
                         static_cast<double>(K_),
                .reset =
                    [this, z = layer.z] {
                        poison(z);
                        poison(y_);
                    },
                .compare = {},
                .variants = {}};
    }

    void multiply(DenseMatmul& dense, const Layer& layer) {
        dense.multiply(MatmulForm::nt, layer.z, x_.tensor(), layer.q.tensor(), false);
    }
    MatmulRopeForward rope_arguments() const {
        return {.matmul = {.z = rope_.z, .x = x_.tensor(), .weight = rope_.weight},
                .rope = {.qkv = rope_.z,
                         .cosines = cosines_,
                         .sines = sines_,
                         .column_scale = rope_.scale.tensor(),
                         .shape = shape_}};
    }
    MatmulSwigluForward swiglu_arguments() const {
        return {.matmul = {.z = swiglu_.z, .x = x_.tensor(), .weight = swiglu_.weight},
                .swiglu = {.y = y_, .gate_up = swiglu_.z, .column_scale = swiglu_.scale.tensor()}};
    }

    reference::Result product(const Layer& layer, int64_t row) const {
        return reference::matmul_forward(x_.rows(row, 1), {layer.q.all(), {}}, 1, layer.weight.rows, K_);
    }

    // Variants that turn in a pass round the product before.
    Comparison compare_rope() {
        Comparison result;
        const int64_t D = shape_.head_dim, half = D / 2;
        const Array scale = rope_.scale.all();
        for (int64_t row : sample(M_)) {
            const int64_t t = row % shape_.sequence;
            const auto at = [&](const Array& all) {
                return Array(all.begin() + t * half, all.begin() + (t + 1) * half);
            };
            const reference::Result z = product(rope_, row);
            const Array magnitude = reference::scale_columns(z.magnitude, scale);
            reference::Result expected = reference::rope_forward(reference::scale_columns(z.value, scale),
                                                                 {at(angles_.cosines), at(angles_.sines)},
                                                                 {1, 1, shape_.heads, shape_.kv_heads, D});
            for (int64_t i = 0; i < N_; ++i)
                expected.magnitude[i] = magnitude[i] + magnitude[i % D < half ? i + half : i - half];
            result.add(read(rope_.z.rows(row, 1)), expected, DType::bfloat16, float32_sum(K_) + 0x1p-8);
        }
        return result;
    }

    Comparison compare_swiglu() {
        Comparison result;
        for (int64_t row : sample(M_)) {
            const Array gate_up = read(swiglu_.z.rows(row, 1));
            result.add(gate_up, product(swiglu_, row), DType::bfloat16, float32_sum(K_));
            result.add(
                read(y_.rows(row, 1)),
                reference::swiglu_forward(reference::scale_columns(gate_up, swiglu_.scale.all()), 1, F_),
                DType::bfloat16, 0x1p-20);
        }
        return result;
    }

    AttentionShape shape_;
    int64_t M_, K_, F_, N_;
    Numbers x_;
    Layer rope_, swiglu_;
    reference::RopeTables angles_;
    Tensor cosines_, sines_, y_;
    std::unique_ptr<DenseMatmul> others_, hopper_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark({"hopper_combined",
                          "A matmul and RoPE or SwiGLU behind it, by Hopper's own instructions.",
                          {{"batch", 32, {1, 2, 1}},
                           {"sequence", 1024, {1, 67, 300}},
                           {"heads", 12, {1, 4, 3}},
                           {"kv_heads", 12, {1, 2, 3}},
                           {"head_dim", 64, {32, 64, 128}},
                           {"inputs", 768, {8, 72, 200}},
                           {"ffn", 2048, {8, 104, 264}}},
                          [](CudaBackend& backend, const Sizes& sizes) {
                              return std::make_unique<HopperCombined>(backend, sizes);
                          }},
                         argc, argv);
}
