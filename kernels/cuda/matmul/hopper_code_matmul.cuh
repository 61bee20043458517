// A matmul of bfloat16 activations with packed codes on Hopper. The product is computed transposed, with the weight as
// wgmma's operand a, so that codes become levels in registers and never lie in memory as such:
//     outᵀ (features, tokens) = q leftᵀ
// forward: q as it is, features are its rows; input gradient: qᵀ, features are its columns, of which 16 x 16 levels are
// transposed in registers. The codes are those of kernels/codes.h, row by row, in both.
//
// One block per multiprocessor walks its share of the tiles, 128 features by `tokens`. A thread brings slices of 64 of
// the inner dimension into a ring of stages: left swizzled, as wgmma's operand b, and a 64 x 64 tile of codes for each of
// two consumers. A consumer, a warpgroup, computes 64 features: while the tensor cores multiply one slice, its threads make
// levels of the next. Sums leave transposed (stmatrix) through shared memory by bulk stores, which leave out what lies
// outside. A sum belongs to one block and is in the order of the inner dimension.
//
// Outside of the matrices left is zero and codes are any level: products there are zero, or not stored. With several scales
// per row that of the nearest weight takes part, so a NaN among them belongs to these sums already.
//
//   tokens   sums of a thread   stages   KiB of shared memory: 1, 2 bits; 4; 8
//   256      128                4                              201; 209; 225
//   64        32                8                              161; 177; 209
#pragma once

#include <algorithm>

#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/matmul/hopper_codes.cuh"
#include "kernels/cuda/matmul/hopper_tiles.cuh"
#include "kernels/cuda/matmul/packed_codes.cuh"

namespace train_qat::CU_BACKEND {

// form: nt forward, nn input gradient. grouped: several scales per row.
template <int bits_, MatmulForm form_, bool grouped_, int tokens_>
struct CodeMatmul {
    static constexpr int bits = bits_, tokens = tokens_;
    static constexpr bool forward = form_ == MatmulForm::nt, grouped = grouped_;
    static constexpr int consumer_features = CodeTile<bits>::extent, slice = CodeTile<bits>::extent;
    static constexpr int features = matmul_consumers * consumer_features;

    static constexpr int left_bytes = tokens * swizzle_row_bytes;
    static constexpr int stage_bytes = left_bytes + matmul_consumers * CodeTile<bits>::bytes;
    static constexpr int stages = tokens == 64 ? 8 : 4;
    using Outputs = OutputParts<4>;  // each a consumer's sums of 64 tokens, as bfloat16
    static constexpr int outputs = stages * stage_bytes;
    static constexpr int shared_bytes = outputs + matmul_consumers * Outputs::bytes + swizzle_atom_bytes;
    static_assert(stage_bytes % swizzle_atom_bytes == 0);
};

struct CodeSteps {
    int token_tiles, feature_tiles, slices;
};

// A weight's scales where rows have several.
struct GroupScales {
    WeightScales scales;
    int rows, columns;
    CU_DEVICE float at(int row, int column) const {
        return scales.at(std::min(row, rows - 1), std::min(column, columns - 1));
    }
};

// Calls body(first token, first feature) for each of this block's tiles.
template <typename Matmul, typename Body>
CU_DEVICE void for_each_code_tile(const CodeSteps& steps, Body&& body) {
    for_each_tile(steps.token_tiles, steps.feature_tiles, 1, [&](TilePlace place, int) {
        body(place.row * Matmul::tokens, place.column * Matmul::features);
    });
}

template <typename Matmul>
CU_DEVICE void produce(const TensorMap* left, const TensorMap* codes, unsigned char* memory,
                       RingBarriers barriers, const CodeSteps& steps) {
    constexpr int bits = Matmul::bits;
    RingPlace<Matmul::stages> ring(1);
    for_each_code_tile<Matmul>(steps, [&](int token, int feature) {
        for (int k = 0; k < steps.slices; ++k, ring.advance()) {
            unsigned char* stage = memory + ring.stage * Matmul::stage_bytes;
            Barrier* const full = barriers.full + ring.stage;
            barrier_wait(barriers.empty + ring.stage, ring.parity);
            barrier_arrive_expect(full, Matmul::stage_bytes);
            tensor_load(stage, left, k * Matmul::slice, token, full);
            stage += Matmul::left_bytes;
            CU_UNROLL
            for (int consumer = 0; consumer < matmul_consumers; ++consumer) {
                const int inner = k * Matmul::slice, outer = feature + consumer * Matmul::consumer_features;
                const int row = Matmul::forward ? outer : inner, column = Matmul::forward ? inner : outer;
                tensor_load(stage + consumer * CodeTile<bits>::bytes, codes, column / 8 * bits, row, full);
            }
        }
    });
}

template <typename Matmul>
class CodeConsumer {
  public:
    CU_DEVICE CodeConsumer(unsigned char* memory, RingBarriers barriers, const CodeSteps& steps, int number,
                           const CodeLevels<Matmul::bits>& levels, const GroupScales& scales)
        : memory_(memory),
          barriers_(barriers),
          slices_(steps.slices),
          number_(number),
          levels_(levels),
          scales_(scales),
          outputs_(memory + Matmul::outputs + number * Matmul::Outputs::bytes, number) {}

    CU_DEVICE void consume(const TensorMap* out, const CodeSteps& steps) {
        float sum[Matmul::tokens / 2];
        Levels even = {}, odd = {};
        for_each_code_tile<Matmul>(steps, [&](int token, int tile_feature) {
            const int feature = tile_feature + number_ * Matmul::consumer_features;
            Scales scales;
            load_scales(scales, feature, 0);
            take(even, scales);
            for (int k = 0; k < slices_; k += 2) {
                multiply(sum, even, odd, feature, k);
                if (k + 1 < slices_) multiply(sum, odd, even, feature, k + 1);
            }
            wgmma_wait<0>();
            keep_registers(sum);
            keep(even);
            keep(odd);
            release_stage(barriers_, multiplied_);
            store_sums(sum, out, token, feature);
        });
        outputs_.finish();
    }

  private:
    static constexpr int steps_of_slice = Matmul::slice / 16;
    using Levels = uint32_t[steps_of_slice][4];
    using Scales = float[steps_of_slice][2];

    CU_DEVICE static int first_row_of_warp() { return warp_index() % 4 * 16; }
    CU_DEVICE static void keep(Levels& levels) {
        CU_UNROLL
        for (int step = 0; step < steps_of_slice; ++step) keep_registers(levels[step]);
    }

    // Of the rows that this lane takes levels from in a slice.
    CU_DEVICE void load_scales(Scales& scales, int feature, int k) const {
        if constexpr (Matmul::grouped) {
            CU_UNROLL
            for (int step = 0; step < steps_of_slice; ++step) {
                const int inner = k * Matmul::slice + 16 * step, outer = feature + first_row_of_warp();
                const int row = (Matmul::forward ? outer : inner) + lane_index() / 4,
                          column = Matmul::forward ? inner : outer;
                scales[step][0] = scales_.at(row, column);
                scales[step][1] = scales_.at(row + 8, column);
            }
        }
    }

    // Waits for the next stage, and makes levels of its codes.
    CU_DEVICE void take(Levels& levels, const Scales& scales) {
        barrier_wait(barriers_.full + ring_.stage, ring_.parity);
        const unsigned char* const codes =
            stage(ring_.stage) + Matmul::left_bytes + number_ * CodeTile<Matmul::bits>::bytes;
        CU_UNROLL
        for (int step = 0; step < steps_of_slice; ++step) {
            uint32_t(&a)[4] = levels[step];
            if constexpr (Matmul::forward)
                load_levels<Matmul::bits>(a, codes, first_row_of_warp(), 16 * step, levels_);
            else
                load_levels<Matmul::bits>(a, codes, 16 * step, first_row_of_warp(), levels_);
            if constexpr (Matmul::grouped) scale_levels(a, scales[step][0], scales[step][1]);
            if constexpr (!Matmul::forward) transpose_levels(a);
        }
        taken_ = ring_.stage;
        ring_.advance();
    }

    // Multiplies slice k, whose levels are known; meanwhile makes those of the next.
    template <int count>
    CU_DEVICE void multiply(float (&sum)[count], const Levels& levels, Levels& next, int feature, int k) {
        const uint64_t left = k_major_descriptor(stage(taken_));
        wgmma_fence();
        CU_UNROLL
        for (int step = 0; step < steps_of_slice; ++step)
            wgmma(sum, levels[step], advance_descriptor(left, 32 * step), k > 0 || step > 0);
        wgmma_commit();
        Scales scales;
        load_scales(scales, feature, k + 1);
        // The slice before has been multiplied: its stage is free, and so are the registers of its levels.
        wgmma_wait<1>();
        keep(next);
        if (k > 0) release_stage(barriers_, multiplied_);
        multiplied_ = taken_;
        if (k + 1 < slices_) take(next, scales);
    }

    // As bfloat16 through shared memory, 64 tokens at a time.
    template <int count>
    CU_DEVICE void store_sums(const float (&sum)[count], const TensorMap* out, int token, int feature) {
        constexpr int part_tokens = 64;
        const int lane = lane_index(), warp = warp_index() % 4;
        CU_UNROLL
        for (int part = 0; part < Matmul::tokens / part_tokens; ++part) {
            unsigned char* const buffer = outputs_.open();
            CU_UNROLL
            for (int eight = 0; eight < part_tokens / 8; eight += 2) {
                const float* const from = sum + part * part_tokens / 2 + eight * 4;
                uint32_t pairs[4];
                CU_UNROLL
                for (int i = 0; i < 4; ++i) pairs[i] = pack_bfloat16(from[2 * i], from[2 * i + 1]);
                stmatrix_x4_trans(
                    buffer + swizzled_chunk(8 * (eight + lane / 16) + lane % 8, 2 * warp + lane / 8 % 2),
                    pairs);
            }
            outputs_.close([&](const unsigned char* written) {
                tensor_store(out, feature, token + part * part_tokens, written);
            });
        }
    }

    CU_DEVICE unsigned char* stage(int number) const { return memory_ + number * Matmul::stage_bytes; }

    unsigned char* memory_;
    RingBarriers barriers_;
    int slices_, number_;
    CodeLevels<Matmul::bits> levels_;
    GroupScales scales_;
    RingPlace<Matmul::stages> ring_{0};
    int taken_ = 0, multiplied_ = 0;  // stages
    typename Matmul::Outputs outputs_;
};

// left (M, inner), out (M, features), codes (rows, bytes).
template <typename Matmul>
__global__ void __launch_bounds__(hopper_matmul_threads, 1)
    code_matmul(const CU_GRID_CONSTANT TensorMap left, const CU_GRID_CONSTANT TensorMap codes,
                const CU_GRID_CONSTANT TensorMap out, CodeLevels<Matmul::bits> levels, GroupScales scales,
                CodeSteps steps) {
    if constexpr (hopper_target) {
        CU_DYN_SHARED(unsigned char, dynamic);
        CU_SHARED(full, Barrier[Matmul::stages]);
        CU_SHARED(empty, Barrier[Matmul::stages]);
        unsigned char* const memory = align_shared(dynamic);
        const RingBarriers barriers{full, empty};
        if (threadIdx.x == 0) {
            prefetch_tensor_map(&left);
            prefetch_tensor_map(&codes);
            prefetch_tensor_map(&out);
            init_ring<Matmul::stages>(barriers, matmul_consumers * warpgroup_threads / 32);
        }
        block_sync();
        divide_roles(
            [&] { produce<Matmul>(&left, &codes, memory, barriers, steps); },
            [&](int number) {
                CodeConsumer<Matmul>(memory, barriers, steps, number, levels, scales).consume(&out, steps);
            });
    }
}

}  // namespace train_qat::CU_BACKEND
