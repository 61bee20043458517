// Matmuls with quantized weights: z = x qᵀ and dx = dz q in bfloat16, where q are levels of 1 to 8 bits.
//
//   1 unpack, then matmul      codes become bfloat16 levels in memory, which the dense matmul reads
//   2 fused, packed codes      codes become levels between shared memory and the tensor cores
//   3 fused, float32 master    the same from the master weights, which become levels on their way
//   4 fused, bfloat16 master
//
// and so on: both matmuls, for each number of bits, the last with several scales per row. The limit is the
// tensor cores', as for all matmuls of many rows; few rows (--rows 16) are bound by the bytes of the weights.
#include <deque>

#include "dev/cuda/bench.h"
#include "kernels/codes.h"
#include "kernels/cuda/matmul/fakequant_matmul.h"

namespace train_qat::CU_BACKEND {

namespace {

// ---- 1: unpack

// A row of packed codes in words, and what its levels are multiplied with.
struct Packed {
    const uint32_t* codes;  // (rows, words)
    const float* scales;    // (rows, columns / group), or null where the scale leaves the sum
    int rows, columns, words, group;
};

// levels: (rows, columns). A thread a word; `width` levels in one access.
template <Grid grid, int width>
__global__ void unpack_kernel(bfloat16* levels, Packed p) {
    constexpr int bits = code_bits(grid), per_word = 32 / bits,
                  per_access = per_word < width ? per_word : width;
    const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (index >= int64_t{p.rows} * p.words) return;
    const int64_t row = index / p.words;
    const int first = static_cast<int>(index % p.words) * per_word;
    const uint32_t word = load(p.codes + index);
    CU_UNROLL
    for (int i = 0; i < per_word; i += per_access) {
        const int column = first + i;
        if (column >= p.columns) return;
        const float scale =
            p.scales != nullptr ? load(p.scales + (row * p.columns + column) / p.group) : 1.0f;
        Vector<bfloat16, per_access> part;
        CU_UNROLL
        for (int j = 0; j < per_access; ++j)
            part[j] = static_cast<bfloat16>(level_of_code<grid>(word >> ((i + j) * bits) & code_mask(grid)) *
                                            scale);
        store_vector<per_access>(levels + row * p.columns + column, part);
    }
}

// ---- the program

// A weight matrix on one grid, in all its forms.
struct Weight {
    Grid grid;
    Numbers scale;  // (N, K / group)
    ComputeWeight codes, levels;
    Array q;  // of the oracle
};

class FakeQuantMatmul final : public Problem {
  public:
    FakeQuantMatmul(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          M_(sizes.at("rows")),
          N_(sizes.at("outputs")),
          K_(sizes.at("inputs")),
          x_(normals(DType::bfloat16, {M_, K_})),
          dz_(normals(DType::bfloat16, {M_, N_})),
          narrow_master_(normals(DType::bfloat16, {N_, K_}, 0.05)),
          // The same numbers in float32.
          master_(Tensor(memory(N_ * K_ * 4), DType::float32, {N_, K_}), narrow_master_.pattern()),
          z_(output(DType::bfloat16, {M_, N_})),
          dx_(output(DType::bfloat16, {M_, K_})) {
        upload(master_);
        for (const Grid grid : {Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer8})
            add(grid, K_);
        constexpr int64_t group = 64;
        if (K_ % group == 0) add(Grid::integer4, group);
    }

    std::vector<Operation> operations() override {
        std::vector<Operation> result;
        const double flops =
            2.0 * static_cast<double>(M_) * static_cast<double>(N_) * static_cast<double>(K_);
        for (Weight& weight : weights_) {
            const int64_t codes = N_ * code_row_bytes(K_, code_bits(weight.grid));
            const auto bytes = static_cast<double>(x_.tensor().bytes() + z_.bytes() + codes);
            const std::string name = std::to_string(code_bits(weight.grid)) + "-bit codes" +
                                     (weight.codes.code_group < K_ ? ", groups of 64" : "");
            result.push_back({
                .name = name + ", forward",
                .bytes = bytes,
                .flops = flops,
                .reset = [this] { poison(z_); },
                .compare = [this, &weight] { return compare_forward(weight); },
                .variants = forward(weight),
            });
            result.push_back({
                .name = name + ", input gradient",
                .bytes = bytes,
                .flops = flops,
                .reset = [this] { poison(dx_); },
                .compare = [this, &weight] { return compare_input_gradient(weight); },
                .variants = input_gradient(weight),
            });
        }
        return result;
    }

  private:
    ComputeWeight compute_weight(bool one_scale) {
        ComputeWeight weight;
        weight.rows = N_;
        weight.columns = K_;
        weight.scaled = one_scale;
        weight.storage = memory(backend().compute_weight_bytes(N_, K_, weight.dtype, false));
        weight.scale_storage = output(DType::float32, {N_}).as<float>();
        return weight;
    }

    void add(Grid grid, int64_t group) {
        // So that all levels are used and some weights are clipped.
        const double largest = 0.2 / reference::table_of(grid).clip_high;
        const bool one_scale = group == K_;
        Weight& weight = weights_.emplace_back(Weight{grid,
                                                      positives(DType::float32, {N_, K_ / group}, largest),
                                                      compute_weight(one_scale),
                                                      compute_weight(one_scale),
                                                      {}});
        ParameterRows p;
        p.rows = N_;
        p.columns = K_;
        p.master = master_.tensor().as<float>();
        p.grid = grid;
        p.group = group;
        p.scale = weight.scale.tensor().as<float>();
        p.compute = &weight.codes;
        backend().quantize({&p, 1});
        if (weight.codes.codes != grid) throw std::logic_error("fakequant_matmul: the weight is not packed");
    }

    // ---- variants

    void unpack(const Weight& weight) {
        const ComputeWeight& codes = weight.codes;
        const int64_t row_bytes = code_row_bytes(K_, code_bits(weight.grid));
        const bool one_scale = codes.code_group == K_;
        const Packed packed{static_cast<const uint32_t*>(codes.storage),
                            one_scale ? nullptr : weight.scale.tensor().as<float>(),
                            static_cast<int>(N_),
                            static_cast<int>(K_),
                            static_cast<int>(row_bytes / 4),
                            static_cast<int>(codes.code_group)};
        auto* const levels = static_cast<bfloat16*>(weight.levels.storage);
        constexpr int threads = 256;
        const unsigned blocks = blocks_for(N_ * packed.words, threads);
        with_grid(weight.grid, [&]<Grid grid>() {
            if constexpr (grid != Grid::none) {
                if (vector_aligned<8>(levels, K_))
                    CU_LAUNCH((unpack_kernel<grid, 8>), blocks, threads, 0, stream(), levels, packed);
                else
                    CU_LAUNCH((unpack_kernel<grid, 1>), blocks, threads, 0, stream(), levels, packed);
            }
        });
    }

    FakeQuantWeight from_master(const Weight& weight, const Tensor& master) const {
        FakeQuantWeight result;
        result.rows = N_;
        result.columns = K_;
        result.source =
            master.dtype == DType::float32 ? WeightSource::master_float32 : WeightSource::master_bfloat16;
        result.data = master.data;
        result.scales = weight.scale.tensor().as<float>();
        result.group = weight.codes.code_group;
        result.grid = weight.grid;
        return result;
    }

    std::vector<Variant> forward(const Weight& weight) {
        const auto fused = [this, &weight](const Tensor& master) {
            return [=, this, &weight] {
                fakequant_matmul_forward(stream(), z_, x_.tensor(), from_master(weight, master), nullptr);
            };
        };
        return {{"unpack, then matmul",
                 [this, &weight] {
                     unpack(weight);
                     backend().matmul_forward(z_, x_.tensor(), weight.levels);
                 }},
                {"fused, packed codes",
                 [this, &weight] { backend().matmul_forward(z_, x_.tensor(), weight.codes); }},
                {"fused, float32 master", fused(master_.tensor())},
                {"fused, bfloat16 master", fused(narrow_master_.tensor())}};
    }

    std::vector<Variant> input_gradient(const Weight& weight) {
        const auto fused = [this, &weight](const Tensor& master) {
            return [=, this, &weight] {
                fakequant_matmul_input_gradient(stream(), dx_, dz_.tensor(), from_master(weight, master));
            };
        };
        return {{"unpack, then matmul",
                 [this, &weight] {
                     unpack(weight);
                     backend().matmul_input_gradient(dx_, dz_.tensor(), weight.levels);
                 }},
                {"fused, packed codes",
                 [this, &weight] { backend().matmul_input_gradient(dx_, dz_.tensor(), weight.codes); }},
                {"fused, float32 master", fused(master_.tensor())},
                {"fused, bfloat16 master", fused(narrow_master_.tensor())}};
    }

    // ---- oracle

    const Array& oracle(Weight& weight) {
        if (weight.q.empty())
            weight.q = reference::quantize(weight.grid, N_, K_, weight.codes.code_group, master_.all(),
                                           weight.scale.all(), DType::bfloat16)
                           .q;
        return weight.q;
    }

    Comparison compare_forward(Weight& weight) {
        Comparison result;
        for (int64_t m : sample(M_))
            result.add(read(z_.rows(m, 1)),
                       reference::matmul_forward(x_.rows(m, 1), {oracle(weight), {}}, 1, N_, K_),
                       DType::bfloat16, float32_sum(K_));
        return result;
    }

    Comparison compare_input_gradient(Weight& weight) {
        Comparison result;
        for (int64_t m : sample(M_))
            result.add(read(dx_.rows(m, 1)),
                       reference::matmul_input_gradient(dz_.rows(m, 1), oracle(weight), 1, N_, K_),
                       DType::bfloat16, float32_sum(N_));
        return result;
    }

    int64_t M_, N_, K_;
    Numbers x_, dz_, narrow_master_, master_;
    Tensor z_, dx_;
    std::deque<Weight> weights_;  // elements stay where they are
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark(
        {"fakequant_matmul",
         "Matmuls with quantized weights in bfloat16, forward and input gradient.",
         {{"rows", 8192, {67, 1, 33}}, {"outputs", 4096, {71, 3, 130}}, {"inputs", 1024, {41, 5, 192}}},
         [](CudaBackend& backend, const Sizes& sizes) {
             return std::make_unique<FakeQuantMatmul>(backend, sizes);
         }},
        argc, argv);
}
