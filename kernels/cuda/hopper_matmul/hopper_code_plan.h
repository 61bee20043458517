// How a product with packed codes is cut into pieces for Hopper's kernels (hopper_code_matmul.cuh).
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

// A tile has `tokens` by 128 features (64 where few tokens share a block between its consumers); `splits` blocks share its
// inner dimension, each with a sum of its own: 1, but for 64 tokens.
struct CodePlan {
    static constexpr int few = 64, medium = 128, many = 256;
    int tokens = few, splits = 1;
    bool operator==(const CodePlan&) const = default;
};

// Features of a tile, and neighbours of the inner dimension that are multiplied at a time.
constexpr int code_features(int tokens) {
    return tokens == CodePlan::few ? 64 : 128;
}
constexpr int code_slice = 64;

// Clocks, by what instructions and tensor cores take at least (2048 multiply-adds of a multiprocessor a clock) and
// the latencies of Hopper's data sheets; no card has been asked yet.
struct CodePlanCosts {
    static constexpr int64_t start = 2000;     // of a kernel: until its first slice has come
    static constexpr int64_t finish = 600;     // of a tile
    static constexpr int64_t gathering = 300;  // of a tile whose consumers have a sum each
    static constexpr int64_t summing = 4000;   // of a second kernel, that adds splits up
    // Of the slices of one tile: making levels takes at least 400 a slice, of two consumers each has every other slice.
    static constexpr int64_t slices(int tokens, int64_t count) {
        if (tokens == CodePlan::few) return (count + 1) / 2 * 400;
        return count * (tokens == CodePlan::medium ? 600 : 1100);
    }
};

// The plan of the least estimated time; by shape and multiprocessors alone, so that a product has the same bits in each call.
inline CodePlan code_plan(int64_t tokens, int64_t features, int64_t inner, int64_t multiprocessors) {
    using Costs = CodePlanCosts;
    const auto pieces = [](int64_t count, int64_t size) { return (count + size - 1) / size; };
    const int64_t slices = pieces(inner, code_slice);
    CodePlan best;
    int64_t least = INT64_MAX;
    const auto consider = [&](int tile_tokens, int splits) {
        const int64_t tiles =
            pieces(tokens, tile_tokens) * pieces(features, code_features(tile_tokens)) * splits;
        const int64_t tile = Costs::slices(tile_tokens, pieces(slices, splits)) + Costs::finish +
                             (tile_tokens == CodePlan::few ? Costs::gathering : 0);
        const int64_t time =
            Costs::start + pieces(tiles, multiprocessors) * tile + (splits > 1 ? Costs::summing : 0);
        if (time >= least) return;
        least = time;
        best = {tile_tokens, splits};
    };
    for (int tile_tokens : {CodePlan::many, CodePlan::medium, CodePlan::few}) consider(tile_tokens, 1);
    // Only where blocks would be idle; each split has two slices at least, one for each consumer.
    const int64_t tiles = pieces(tokens, CodePlan::few) * pieces(features, code_features(CodePlan::few));
    for (int64_t splits = 2; splits <= std::min(multiprocessors / tiles, slices / 2); ++splits)
        consider(CodePlan::few, static_cast<int>(splits));
    return best;
}

}  // namespace train_qat::CU_BACKEND
