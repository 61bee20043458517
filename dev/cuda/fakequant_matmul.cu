// Matmuls with quantized weights: z = x qᵀ and dx = dz q in bfloat16, where q are levels of 1 to 8 bits.
//
//   1 unpack, then matmul      codes become bfloat16 levels in memory, which the dense matmul reads
//   2 fused, packed codes      codes become levels between shared memory and the tensor cores
//   3 fused, float32 master    the same from the master weights, which become levels on their way
//   4 fused, bfloat16 master
//   5 as 2 by Hopper's instructions, codes become levels in registers: tiles of 256 rows
//   6                                                                  tiles of 128 rows
//   7                                                                  tiles of 64 rows, for few of them
//   8                                                                  the same, two splits of the inner dimension
//   9                                                                  the same, four
//  10 as 5, codes in wgmma's order in memory (fragment_codes.cuh), which they are packed into beforehand
//  11 as 7
//
// and so on: both matmuls, for each number of bits, the last with several scales per row. 3 and 4 need no second copy of
// the weights, but quantize each of them once per tile of rows. 5 to 11 are there on cards of compute capability 9.0, for
// outputs and inputs that are multiples of 8; which of them trains: hopper_code_plan.h. The limit is the tensor cores', as for
// all matmuls of many rows; few rows (--rows 64) are bound by the bytes of the weights and by latencies.
#include <deque>
#include <utility>

#include "dev/cuda/bench.h"
#include "dev/cuda/fragment_codes.cuh"
#include "kernels/codes.h"
#include "kernels/cuda/hopper_matmul/hopper_fakequant_matmul.h"
#include "kernels/cuda/matmul/packed_codes.cuh"
#include "kernels/cuda/matmul/tile_matmul.cuh"
#include "kernels/cuda/platform/hopper_device.h"

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

// ---- 3 and 4: master weights as the right operand of tile_matmul

// Master: float or bfloat16. aligned: eight weights are whole accesses of 16 bytes.
template <typename Master, Grid grid, bool aligned>
struct MasterWeights {
    const Master* weights;
    int rows, columns;
    WeightScales scales;  // as the optimizer has them
    bool grouped;         // several scales per row

    static constexpr int width = 16 / sizeof(Master), parts = 8 / width;
    struct Raw {
        Vector<Master, width> part[parts];
        float scale;
    };
    CU_DEVICE Raw fetch(int row, int column) const {
        row = std::min(row, rows - 1);
        column = std::min(column, (columns - 1) / 8 * 8);
        const Master* from = weights + int64_t{row} * columns;
        Raw raw;
        CU_UNROLL
        for (int p = 0; p < parts; ++p) {
            const int first = column + p * width;
            if constexpr (aligned) {
                raw.part[p] = load_vector<width>(from + first);
            } else {
                CU_UNROLL
                for (int e = 0; e < width; ++e)
                    raw.part[p][e] = load(from + std::min(first + e, columns - 1));
            }
        }
        raw.scale = scales.at(row, column);
        return raw;
    }
    CU_DEVICE Vector<uint32_t, 4> convert(const Raw& raw) const {
        const float scale = effective_scale(raw.scale), factor = grouped ? scale : 1.0f;
        const auto value = [&](int i) {
            return GridTraits<grid>::level(static_cast<float>(raw.part[i / width][i % width]) / scale) *
                   factor;
        };
        Vector<uint32_t, 4> result;
        CU_UNROLL
        for (int i = 0; i < 4; ++i) result[i] = pack_bfloat16(value(2 * i), value(2 * i + 1));
        return result;
    }
};

constexpr Grid benchmark_grids[] = {Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer8};

// Calls function.template operator()<grid>().
template <typename Function>
void with_benchmark_grid(Grid grid, Function&& function) {
    switch (grid) {
        case Grid::binary:
            return function.template operator()<Grid::binary>();
        case Grid::quaternary:
            return function.template operator()<Grid::quaternary>();
        case Grid::integer4:
            return function.template operator()<Grid::integer4>();
        case Grid::integer8:
            return function.template operator()<Grid::integer8>();
        default:
            throw std::logic_error("fakequant_matmul: not a grid of this benchmark");
    }
}

// out = left q, or left qᵀ, with q = level(w / effective_scale(s)). scales: (rows, columns / group).
template <MatmulForm form, typename Master>
void multiply_master(CuStream stream, const Tensor& out, const Tensor& left, const Tensor& master,
                     const Tensor& scales, Grid grid) {
    const auto* weights = master.as<Master>();
    const int rows = static_cast<int>(master.shape[0]), columns = static_cast<int>(master.shape[1]);
    const int64_t group = columns / scales.shape[1];
    const WeightScales group_scales = weight_scales(scales.as<float>(), columns, group);
    const bool grouped = group < columns;
    constexpr int width = 16 / sizeof(Master);
    with_benchmark_grid(grid, [&]<Grid known>() {
        launch_product<form>(
            stream, product_of(out, false), left, vector_aligned<width>(weights, columns) && columns % 8 == 0,
            MasterWeights<Master, known, true>{weights, rows, columns, group_scales, grouped},
            MasterWeights<Master, known, false>{weights, rows, columns, group_scales, grouped},
            TileSize::automatic);
    });
}

// ---- 5 to 11

constexpr std::pair<const char*, CodePlan> hopper_plans[] = {
    {"Hopper, 256 rows", {CodePlan::many, 1}},         {"Hopper, 128 rows", {CodePlan::medium, 1}},
    {"Hopper, 64 rows", {CodePlan::few, 1}},           {"Hopper, 64 rows, 2 splits", {CodePlan::few, 2}},
    {"Hopper, 64 rows, 4 splits", {CodePlan::few, 4}},
};

constexpr std::pair<const char*, CodePlan> fragment_plans[] = {
    {"Hopper, 256 rows, wgmma's order", {CodePlan::many, 1}},
    {"Hopper, 64 rows, wgmma's order", {CodePlan::few, 1}},
};

// ---- the program

// A weight matrix on one grid, in all its forms.
struct Weight {
    Grid grid;
    Numbers scale;  // (N, K / group)
    ComputeWeight codes, levels;
    Array q;                                    // of the oracle
    FragmentArray fragments, turned_fragments;  // of q and qᵀ
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
          dx_(output(DType::bfloat16, {M_, K_})),
          hopper_(backend.device().properties().major == 9 && hopper_refusal(N_, K_, K_).empty()) {
        if (hopper_) require_hopper(backend.device(), "fakequant_matmul", "use such a card");
        upload(master_);
        for (const Grid grid : benchmark_grids) add(grid, K_);
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
                .variants = variants<MatmulForm::nt>(weight, z_, x_.tensor()),
            });
            result.push_back({
                .name = name + ", input gradient",
                .bytes = bytes,
                .flops = flops,
                .reset = [this] { poison(dx_); },
                .compare = [this, &weight] { return compare_input_gradient(weight); },
                .variants = variants<MatmulForm::nn>(weight, dx_, dz_.tensor()),
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
                                                      {},
                                                      {},
                                                      {}});
        ParameterRows p;
        p.rows = N_;
        p.columns = K_;
        p.master = master_.tensor().as<float>();
        p.grid = grid;
        p.group = group;
        p.scale = weight.scale.tensor().as<float>();
        p.compute = &weight.codes;
        backend().quantize({.parameters = {&p, 1}});
        if (weight.codes.codes != grid) throw std::logic_error("fakequant_matmul: the weight is not packed");
        if (hopper_ && one_scale) {
            weight.fragments = pack<MatmulForm::nt>(weight.codes);
            weight.turned_fragments = pack<MatmulForm::nn>(weight.codes);
        }
    }

    template <MatmulForm form>
    FragmentArray pack(const ComputeWeight& codes) {
        FragmentArray array = fragment_array(form, codes);
        array.words = static_cast<uint32_t*>(memory(array.bytes(code_bits(codes.codes))));
        pack_fragment_array<form>(stream(), array, codes);
        return array;
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

    template <MatmulForm form>
    std::vector<Variant> variants(Weight& weight, const Tensor& out, const Tensor& left) {
        const auto dense_or_packed = [this, out, left](const ComputeWeight& q) {
            if constexpr (form == MatmulForm::nt)
                backend().matmul_forward({.z = out, .x = left, .weight = q});
            else
                backend().matmul_input_gradient({.dx = out, .dz = left, .weight = q});
        };
        std::vector<Variant> result = {
            {"unpack, then matmul",
             [=, this, &weight] {
                 unpack(weight);
                 dense_or_packed(weight.levels);
             }},
            {"fused, packed codes", [=, &weight] { dense_or_packed(weight.codes); }},
            {"fused, float32 master",
             [=, this, &weight] {
                 multiply_master<form, float>(stream(), out, left, master_.tensor(), weight.scale.tensor(),
                                              weight.grid);
             }},
            {"fused, bfloat16 master",
             [=, this, &weight] {
                 multiply_master<form, bfloat16>(stream(), out, left, narrow_master_.tensor(),
                                                 weight.scale.tensor(), weight.grid);
             }},
        };
        if (hopper_)
            for (const auto& [name, plan] : hopper_plans)
                result.push_back({name, [=, this, &weight, plan = plan] {
                                      Device& device = backend().device();
                                      if constexpr (form == MatmulForm::nt)
                                          hopper_matmul_forward(device, out, left, weight.codes, plan);
                                      else
                                          hopper_matmul_input_gradient(device, out, left, weight.codes, plan);
                                  }});
        const FragmentArray& array = form == MatmulForm::nt ? weight.fragments : weight.turned_fragments;
        if (array.words != nullptr)
            for (const auto& [name, plan] : fragment_plans)
                result.push_back({name, [=, this, &weight, &array, plan = plan] {
                                      multiply_fragments<form>(backend().device(), out, left, weight.codes,
                                                               array, plan);
                                  }});
        return result;
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
    bool hopper_;                 // its kernels take these products
    std::deque<Weight> weights_;  // elements stay where they are
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark(
        {"fakequant_matmul",
         "Matmuls with quantized weights in bfloat16, forward and input gradient.",
         {{"rows", 8192, {67, 1, 33}}, {"outputs", 4096, {71, 3, 136}}, {"inputs", 1024, {41, 5, 192}}},
         [](CudaBackend& backend, const Sizes& sizes) {
             return std::make_unique<FakeQuantMatmul>(backend, sizes);
         }},
        argc, argv);
}
