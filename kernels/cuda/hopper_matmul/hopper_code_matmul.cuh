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
// outside.
//
// Few tokens leave too few tiles, and each waits for one slice after the other. Then a tile has 64 features, of which the
// consumers multiply every other slice each, out of a ring of its own; the first adds the second's sums to its own. Where even
// those tiles are few (hopper_code_plan.h), `splits` blocks take a part of a tile's slices each, and write float32 sums that a
// second kernel adds up (split_sum.h). All sums are in an order that only the plan of the product decides.
//
// Outside of the matrices left is zero and codes are any level: products there are zero, or not stored. With several scales
// per row that of the nearest weight takes part, so a NaN among them belongs to these sums already.
//
//   tokens   features   sums of a thread   stages     KiB of shared memory: 1, 2 bits; 4; 8
//   256      128        128                4          201; 209; 225
//   128      128        64                 6          173; 185; 209
//   64       64         32                 2 x 6      157; 169; 193
#pragma once

#include <algorithm>

#include "kernels/cuda/hopper_matmul/hopper_code_plan.h"
#include "kernels/cuda/hopper_matmul/hopper_codes.cuh"
#include "kernels/cuda/hopper_matmul/hopper_tiles.cuh"
#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/matmul/packed_codes.cuh"

namespace train_qat::CU_BACKEND {

// Codes: how they lie in memory, as RowCodes in hopper_codes.cuh. grouped: several scales per row.
template <typename Codes_, bool grouped_, int tokens_>
struct CodeMatmul {
    using Codes = Codes_;
    static constexpr int bits = Codes::bits, tokens = tokens_;
    static constexpr bool forward = Codes::forward, grouped = grouped_;
    static constexpr int consumer_features = CodeTile<bits>::extent, slice = code_slice;
    static constexpr int features = code_features(tokens);
    static_assert(slice == CodeTile<bits>::extent);

    // Whether the consumers have the same features and every other slice each, from a ring of its own.
    static constexpr bool shared_features = features == consumer_features;
    static constexpr int rings = shared_features ? ring_consumers : 1;
    static constexpr int ring_stages = tokens == CodePlan::many ? 4 : 6, stages = rings * ring_stages;
    static constexpr int consumers_of_stage = ring_consumers / rings;

    static constexpr int left_bytes = tokens * swizzle_row_bytes;
    static constexpr int loaded_bytes = left_bytes + consumers_of_stage * Codes::tile_bytes;
    static constexpr int stage_bytes =
        (loaded_bytes + swizzle_atom_bytes - 1) / swizzle_atom_bytes * swizzle_atom_bytes;
    using Outputs = OutputParts<4>;  // each a consumer's sums of 64 tokens, as bfloat16
    static constexpr int outputs = stages * stage_bytes;
    // The second consumer's sums, as float32.
    static constexpr int exchange = outputs + consumers_of_stage * Outputs::bytes;
    static constexpr int exchange_bytes = shared_features ? tokens * features * 4 : 0;
    static constexpr int shared_bytes = exchange + exchange_bytes + swizzle_atom_bytes;
};

// slices: multiples of Matmul::rings; those that lie outside are zero.
struct CodeSteps {
    int token_tiles, feature_tiles, slices;
    int splits, slices_of_split;  // of a tile's slices; no split is empty
};

// The sums of splits: (splits, tokens, features), or null where there is one.
struct SplitSums {
    float* data;
    int tokens, features;
};

// What a block computes at a time: of a tile, `slices` from first_slice on.
struct CodeWork {
    int token, feature, split, first_slice, slices;
};

// A weight's scales where rows have several.
struct GroupScales {
    WeightScales scales;
    int rows, columns;
    CU_DEVICE float at(int row, int column) const {
        return scales.at(std::min(row, rows - 1), std::min(column, columns - 1));
    }
};

// Calls body(work) for each of this block's pieces.
template <typename Matmul, typename Body>
CU_DEVICE void for_each_piece(const CodeSteps& steps, Body&& body) {
    const int splits = Matmul::shared_features ? steps.splits : 1;
    const int slices = Matmul::shared_features ? steps.slices_of_split : steps.slices;
    for_each_tile(steps.token_tiles, steps.feature_tiles, splits, [&](TilePlace place, int split) {
        const int first = split * slices;
        body(CodeWork{place.row * Matmul::tokens, place.column * Matmul::features, split, first,
                      std::min(slices, steps.slices - first)});
    });
}

// Brings slice k.
template <typename Matmul>
CU_DEVICE void load_slice(const TensorMap* left, const TensorMap* codes, unsigned char* stage, Barrier* full,
                          const CodeWork& work, int k) {
    using Codes = typename Matmul::Codes;
    barrier_arrive_expect(full, Matmul::loaded_bytes);
    tensor_load(stage, left, k * Matmul::slice, work.token, full);
    stage += Matmul::left_bytes;
    CU_UNROLL
    for (int consumer = 0; consumer < Matmul::consumers_of_stage; ++consumer)
        Codes::fetch(stage + consumer * Codes::tile_bytes, codes,
                     work.feature + consumer * Matmul::consumer_features, k * Matmul::slice, full);
}

template <typename Matmul>
CU_DEVICE void produce(const TensorMap* left, const TensorMap* codes, unsigned char* memory,
                       RingBarriers barriers, const CodeSteps& steps) {
    using Place = RingPlace<Matmul::ring_stages>;
    Place places[] = {Place(1), Place(1)};
    for_each_piece<Matmul>(steps, [&](const CodeWork& work) {
        for (int k = 0; k < work.slices; k += Matmul::rings) {
            CU_UNROLL
            for (int ring = 0; ring < Matmul::rings; ++ring) {
                const int stage = ring * Matmul::ring_stages + places[ring].stage;
                barrier_wait(barriers.empty + stage, places[ring].parity);
                load_slice<Matmul>(left, codes, memory + stage * Matmul::stage_bytes, barriers.full + stage,
                                   work, work.first_slice + k + ring);
                places[ring].advance();
            }
        }
    });
}

template <typename Matmul>
class CodeConsumer {
    using Codes = typename Matmul::Codes;

  public:
    CU_DEVICE CodeConsumer(unsigned char* memory, RingBarriers barriers, int number,
                           const typename Codes::Levels& levels, const GroupScales& scales)
        : memory_(memory),
          barriers_(barriers),
          number_(number),
          levels_(levels),
          scales_(scales),
          first_stage_(Matmul::shared_features ? number * Matmul::ring_stages : 0),
          outputs_(memory + Matmul::outputs + (Matmul::shared_features ? 0 : number * Matmul::Outputs::bytes),
                   number) {}

    CU_DEVICE void consume(const TensorMap* out, const SplitSums& splits, const CodeSteps& steps) {
        float sum[Matmul::tokens / 2];
        Levels even = {}, odd = {};
        for_each_piece<Matmul>(steps, [&](const CodeWork& work) {
            const int feature =
                work.feature + (Matmul::shared_features ? 0 : number_) * Matmul::consumer_features;
            const int begin = Matmul::shared_features ? number_ : 0;
            multiply_slices(sum, even, odd, feature, work.first_slice + begin,
                            work.first_slice + work.slices);
            if constexpr (Matmul::shared_features)
                store_both_sums(sum, out, splits, work);
            else
                store_sums(sum, out, work.token, feature);
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
    CU_DEVICE void release(int stage) { release_stage(barriers_, first_stage_ + stage); }

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
        barrier_wait(barriers_.full + first_stage_ + ring_.stage, ring_.parity);
        const int tile = Matmul::shared_features ? 0 : number_;
        Codes::load(levels, stage(ring_.stage) + Matmul::left_bytes + tile * Codes::tile_bytes,
                    first_row_of_warp(), levels_);
        CU_UNROLL
        for (int step = 0; step < steps_of_slice; ++step) {
            if constexpr (Matmul::grouped) scale_levels(levels[step], scales[step][0], scales[step][1]);
            if constexpr (Codes::transposed) transpose_levels(levels[step]);
        }
        taken_ = ring_.stage;
        ring_.advance();
    }

    // Slices first, first + rings ... before `end`: one at least.
    template <int count>
    CU_DEVICE void multiply_slices(float (&sum)[count], Levels& even, Levels& odd, int feature, int first,
                                   int end) {
        constexpr int stride = Matmul::rings;
        Scales scales;
        load_scales(scales, feature, first);
        take(even, scales);
        for (int k = first; k < end; k += 2 * stride) {
            multiply(sum, even, odd, feature, k, k > first, end);
            if (k + stride < end) multiply(sum, odd, even, feature, k + stride, true, end);
        }
        wgmma_wait<0>();
        keep_registers(sum);
        keep(even);
        keep(odd);
        release(multiplied_);
    }

    // Multiplies slice k, whose levels are known; meanwhile makes those of the next. accumulate: not the first.
    template <int count>
    CU_DEVICE void multiply(float (&sum)[count], const Levels& levels, Levels& next, int feature, int k,
                            bool accumulate, int end) {
        const uint64_t left = k_major_descriptor(stage(taken_));
        wgmma_fence();
        CU_UNROLL
        for (int step = 0; step < steps_of_slice; ++step)
            wgmma(sum, levels[step], advance_descriptor(left, 32 * step), accumulate || step > 0);
        wgmma_commit();
        Scales scales;
        load_scales(scales, feature, k + Matmul::rings);
        // The slice before has been multiplied: its stage is free, and so are the registers of its levels.
        wgmma_wait<1>();
        keep(next);
        if (accumulate) release(multiplied_);
        multiplied_ = taken_;
        if (k + Matmul::rings < end) take(next, scales);
    }

    // The first consumer stores the second's sums added to its own.
    template <int count>
    CU_DEVICE void store_both_sums(const float (&sum)[count], const TensorMap* out, const SplitSums& splits,
                                   const CodeWork& work) {
        constexpr int barrier = 1 + ring_consumers, both = ring_consumers * warpgroup_threads;
        auto* const own =
            reinterpret_cast<float*>(memory_ + Matmul::exchange) + 4 * (threadIdx.x % warpgroup_threads);
        if (number_ == 1) {
            CU_UNROLL
            for (int i = 0; i < count; i += 4)
                store_shared_vector(own + i * warpgroup_threads,
                                    Vector<float, 4>{sum[i], sum[i + 1], sum[i + 2], sum[i + 3]});
            group_sync(barrier, both);
            group_sync(barrier, both);  // it has been read
            return;
        }
        float total[count];
        group_sync(barrier, both);
        CU_UNROLL
        for (int i = 0; i < count; i += 4) {
            const Vector<float, 4> other = load_shared_vector<4>(own + i * warpgroup_threads);
            CU_UNROLL
            for (int j = 0; j < 4; ++j) total[i + j] = sum[i + j] + other[j];
        }
        group_sync(barrier, both);
        if (splits.data != nullptr)
            store_split(total, splits, work);
        else
            store_sums(total, out, work.token, work.feature);
    }

    // As float32: 8 lanes have 32 bytes of a row.
    template <int count>
    CU_DEVICE void store_split(const float (&sum)[count], const SplitSums& splits, const CodeWork& work) {
        const int lane = lane_index();
        CU_UNROLL
        for (int i = 0; i < count; ++i) {
            const int token = work.token + i / 4 * 8 + lane % 4 * 2 + i % 2,
                      feature = work.feature + first_row_of_warp() + i / 2 % 2 * 8 + lane / 4;
            if (token < splits.tokens && feature < splits.features)
                store(splits.data + (int64_t{work.split} * splits.tokens + token) * splits.features + feature,
                      sum[i]);
        }
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

    CU_DEVICE unsigned char* stage(int number) const {
        return memory_ + (first_stage_ + number) * Matmul::stage_bytes;
    }

    unsigned char* memory_;
    RingBarriers barriers_;
    int number_;
    typename Codes::Levels levels_;
    GroupScales scales_;
    int first_stage_;  // of its ring
    RingPlace<Matmul::ring_stages> ring_{0};
    int taken_ = 0, multiplied_ = 0;  // stages of the ring
    typename Matmul::Outputs outputs_;
};

// left (M, inner), out (M, features), codes (rows, bytes).
template <typename Matmul>
__global__ void __launch_bounds__(ring_threads, 1)
    code_matmul(const CU_GRID_CONSTANT TensorMap left, const CU_GRID_CONSTANT TensorMap codes,
                const CU_GRID_CONSTANT TensorMap out, SplitSums splits, typename Matmul::Codes::Levels levels,
                GroupScales scales, CodeSteps steps) {
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
            init_ring<Matmul::stages>(barriers, Matmul::consumers_of_stage * warpgroup_threads / 32);
        }
        block_sync();
        divide_roles(
            [&] { produce<Matmul>(&left, &codes, memory, barriers, steps); },
            [&](int number) {
                CodeConsumer<Matmul>(memory, barriers, number, levels, scales).consume(&out, splits, steps);
            });
    }
}

}  // namespace train_qat::CU_BACKEND
