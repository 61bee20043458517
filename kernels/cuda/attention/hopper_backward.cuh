// The kernel of causal attention, backward, by Hopper's own instructions (hopper.cuh), in five products; what it computes:
// attention_backward.cu. A tile of 128 keys and one of queries, transposed:
//
//     p = e^(k qᵀ / sqrt(D) - log_sum_exp)      dp = v dyᵀ      ds = p ∘ (dp - delta)
//     dv += p dy         dk += ds q             dq += dsᵀ k     (dk and dq / sqrt(D))
//
// delta comes from y and its remainder (hopper_backward_rows.cuh), so that no product is needed to find it.
//
// Floor: 10 B H (T²/2) D FLOP on tensor cores.
//
// Design: the tiles of keys of a key/value head belong to `splits` blocks, which visit theirs in ascending order, and for each the
// tiles of queries from the diagonal on, of each head of the group. One warpgroup loads, two compute 64 keys each: p and ds come
// out of their products as left operands of the next, so that dv and dk stay in registers until the tile of keys is finished.
// ds passes through shared memory to both: each multiplies its half of dq, all 128 keys of it, and adds that to the split's part in
// global memory. A lane adds to the same numbers every time, and has waited for the add before: the order of the sum is fixed,
// without atomics. A split's first tile of keys writes, so that nothing needs to be cleared. dq leaves while the scores of the next
// tile are under way.
#pragma once

#include "kernels/cuda/attention/hopper_backward_tiles.cuh"
#include "kernels/cuda/attention/hopper_softmax.cuh"

namespace train_qat::CU_BACKEND::attention {

// ---- a consumer, one warpgroup

struct BackwardMaps {
    const TensorMap *dqkv, *sums;
};

template <typename Form>
struct BackwardConsumer {
    using Tiles = BackwardTiles<Form>;
    static constexpr int D = Form::head_dim, M = Form::queries;
    Tiles tiles;
    BackwardBarriers<Form>& barriers;
    BackwardMaps maps;
    int number;  // 0 or 1
    KeyTiles work;
    int split_rows;  // of the sums: of each split
    const AttentionSizes& s;

    RingPlace<key_buffers> key{0};
    RingPlace<Form::value_buffers> value{0};
    RingPlace<Form::stages> query{0};
    uint32_t ds_parity = 1;

    CU_DEVICE int warp() const { return number * (warpgroup_threads / 32) + warp_index() % 4; }
    CU_DEVICE unsigned char* slice() const { return tiles.slice(warp()); }
    CU_DEVICE void release(Barrier* empty) const {
        if (lane_index() == 0) barrier_arrive(empty);
    }

    // A tile of keys and one of queries, of one head of the group.
    struct Step {
        int round, tile, head, query_tile, stage;
    };
    CU_DEVICE int first_query_tile(int tile) const { return tile * (tile_rows / M); }
    CU_DEVICE bool starts_keys(const Step& step) const {
        return step.head == 0 && step.query_tile == first_query_tile(step.tile);
    }
    CU_DEVICE bool ends_keys(const Step& step) const {
        return step.head == s.group - 1 && step.query_tile == work.query_tiles - 1;
    }
    // False: there is none.
    CU_DEVICE bool advance(Step& step) const {
        if (++step.query_tile < work.query_tiles) return true;
        if (++step.head == s.group) {
            step.head = 0;
            step.tile = work.tile(++step.round);
        }
        step.query_tile = first_query_tile(step.tile);
        return step.tile < work.tiles;
    }
    // Of a step's dq, in the sums.
    CU_DEVICE int row(const Step& step) const {
        const int head = work.batch * s.heads + work.kv_head * s.group + step.head;
        const int slice = (head * work.query_tiles + step.query_tile) * consumer_warps + warp();
        return work.split * split_rows + slice * slice_rows;
    }

    // p of the scores, with the columns' log_sum_exp.
    CU_DEVICE void weigh(float (&scores)[M / 2]) const {
        const float* const shifts = tiles.statistics(query.stage);
        CU_UNROLL
        for (int i = 0; i < M / 2; i += 4) {
            const Vector<float, 2> shift = load_shared_vector<2>(shifts + warpgroup_column(i));
            CU_UNROLL
            for (int e = 0; e < 4; ++e)
                scores[i + e] = flushed_exp2(scores[i + e] * s.binary_root - shift[e % 2]);
        }
    }
    // dp becomes ds.
    CU_DEVICE void differentiate(float (&dweights)[M / 2], const float (&weights)[M / 2]) const {
        const float* const deltas = tiles.statistics(query.stage) + M;
        CU_UNROLL
        for (int i = 0; i < M / 2; i += 4) {
            const Vector<float, 2> delta = load_shared_vector<2>(deltas + warpgroup_column(i));
            CU_UNROLL
            for (int e = 0; e < 4; ++e) dweights[i + e] = weights[i + e] * (dweights[i + e] - delta[e % 2]);
        }
    }

    // ds of both consumers to shared memory, keys as rows; finish_weights has waited for room.
    CU_DEVICE void exchange(const uint32_t (&ds)[M / 16][4]) {
        const int lane = lane_index(), row = number * consumer_rows + warp_index() % 4 * 16 + lane % 16;
        CU_UNROLL
        for (int k = 0; k < M / 16; ++k)
            stmatrix_x4(tiles.ds() + k / 4 * part_bytes + swizzled_chunk(row, k % 4 * 2 + lane / 16), ds[k]);
        fence_async_proxy();
        group_sync(1, consumers * warpgroup_threads);
    }
    // dq (64 queries, 64 columns) of this consumer's half = dsᵀ k
    CU_DEVICE void start_query_gradient(float (&dq)[part_columns / 2]) const {
        const int ds_part = D == 64 ? number : 0, key_part = D == 64 ? 0 : number;
        const uint64_t a = mn_major_descriptor(tiles.ds() + ds_part * part_bytes, part_bytes),
                       b = mn_major_descriptor(tiles.keys(key.stage) + key_part * part_bytes, part_bytes);
        wgmma_fence();
        CU_UNROLL
        for (int k = 0; k < tile_rows; k += 16)
            wgmma<Major::mn, Major::mn>(dq, advance_descriptor(a, k * swizzle_row_bytes),
                                        advance_descriptor(b, k * swizzle_row_bytes), k > 0);
        wgmma_commit();
    }
    // The slice may be written again. complete: what was added from it has arrived.
    CU_DEVICE void reuse_slice(bool complete) const {
        if (lane_index() == 0) {
            if (complete)
                bulk_wait<0>();
            else
                bulk_wait_read<0>();
        }
        warp_sync();
    }
    // What stands behind a step: its stage and ds are free, dq is added to the sums.
    CU_DEVICE void finish_queries(const float (&dq)[part_columns / 2], const Step& step) const {
        release(&barriers.query_empty[step.stage]);
        release(&barriers.ds_empty);
        reuse_slice(step.round > 0 && starts_keys(step));
        const int g = lane_index() / 4, t = lane_index() % 4;
        CU_UNROLL
        for (int j = 0; j < part_columns / 8; ++j)
            store_shared_vector<4>(reinterpret_cast<float*>(slice()) + slice_place(j, g, t),
                                   Vector<float, 4>{dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]});
        fence_async_proxy();
        warp_sync();
        if (lane_index() != 0) return;
        if (step.round == 0)
            tensor_store(maps.sums, 0, row(step), slice());
        else
            tensor_add(maps.sums, 0, row(step), slice());
        bulk_commit();
    }

    // A warp's 16 rows of dk or dv to the `column_head`-th head of dqkv.
    CU_DEVICE void store_gradient(const float (&gradient)[D / 2], float scale, int column_head,
                                  int tile) const {
        reuse_slice(false);
        store_product<16>(slice(), 0, gradient, [&](float low, float high, int) {
            return pack_bfloat16(low * scale, high * scale);
        });
        fence_async_proxy();
        warp_sync();
        if (lane_index() != 0) return;
        CU_UNROLL
        for (int part = 0; part < Tiles::parts; ++part)
            tensor_store(maps.dqkv, (column_head * Tiles::parts + part) * part_columns,
                         tile * tile_rows + warp() * 16, work.batch, slice() + part * part_bytes_of(16));
        bulk_commit();
    }

    CU_DEVICE void start_weights(float (&weights)[M / 2], const Step& step) {
        if (starts_keys(step)) barrier_wait(&barriers.key_full[key.stage], key.parity);
        barrier_wait(&barriers.query_full[query.stage], query.parity);
        start_scores<D, tile_rows, M>(weights, tiles.keys(key.stage) + number * consumer_bytes,
                                      tiles.queries(query.stage));
    }
    CU_DEVICE void start_dweights(float (&dweights)[M / 2], const Step& step) {
        if (starts_keys(step)) barrier_wait(&barriers.value_full[value.stage], value.parity);
        start_scores<D, tile_rows, M>(dweights, tiles.values(value.stage) + number * consumer_bytes,
                                      tiles.douts(query.stage));
    }
    // p when the scores have come, and dp.
    CU_DEVICE void finish_weights(float (&weights)[M / 2], float (&dweights)[M / 2], const Step& step) {
        wgmma_wait<1>();
        keep_registers(weights);
        const int keys_ahead = step.tile * tile_rows + number * consumer_rows - step.query_tile * M;
        if (keys_ahead + consumer_rows > 1) hide_earlier_queries(weights, keys_ahead);
        weigh(weights);
        // Weights are made while the tensor cores are busy: left alone, the compiler would wait for these first. A loop stops it, and
        // that for room for ds has to stand somewhere.
        keep_registers(weights);
        barrier_wait(&barriers.ds_empty, ds_parity);
        ds_parity ^= 1;
        wgmma_wait<0>();
        keep_registers(dweights);
        if (!ends_keys(step)) return;
        release(&barriers.value_empty[value.stage]);
        value.advance();
    }
    // dv and dk of a step, and its dq under way.
    CU_DEVICE void multiply_weights(float (&dk)[D / 2], float (&dv)[D / 2], float (&dq)[part_columns / 2],
                                    const float (&weights)[M / 2], float (&dweights)[M / 2],
                                    bool accumulate) {
        uint32_t p[M / 16][4], ds[M / 16][4];
        differentiate(dweights, weights);
        pack_weights(p, weights);
        pack_weights(ds, dweights);
        start_weighted_rows(dv, p, tiles.douts(query.stage), accumulate);
        start_weighted_rows(dk, ds, tiles.queries(query.stage), accumulate);
        exchange(ds);
        start_query_gradient(dq);
        wgmma_wait<1>();
        keep_registers(dv);
        keep_registers(dk);
        for (auto& operand : p) keep_registers(operand);
        for (auto& operand : ds) keep_registers(operand);
    }

    // What stands behind a tile of keys.
    CU_DEVICE void finish_keys(const float (&dk)[D / 2], const float (&dv)[D / 2], int tile,
                               Barrier* empty) const {
        release(empty);
        store_gradient(dv, 1.0f, s.heads + s.kv_heads + work.kv_head, tile);
        store_gradient(dk, s.inverse_root, s.heads + work.kv_head, tile);
    }

    // Where the loop turns no product is under way: across its end the compiler would have them wait for each other.
    CU_DEVICE void run() {
        float dk[D / 2], dv[D / 2], dq[part_columns / 2], weights[M / 2], dweights[M / 2];
        Step step{0, work.tile(0), 0, first_query_tile(work.tile(0)), 0};
        start_weights(weights, step);
        start_dweights(dweights, step);
        finish_weights(weights, dweights, step);
        for (Step next = step; advance(next); step = next) {
            multiply_weights(dk, dv, dq, weights, dweights, !starts_keys(step));
            query.advance();
            next.stage = query.stage;
            Barrier* const keys_empty = &barriers.key_empty[key.stage];
            if (starts_keys(next)) key.advance();
            if (Form::scores_ahead) start_weights(weights, next);
            wgmma_wait<Form::scores_ahead ? 1 : 0>();
            keep_registers(dq);
            finish_queries(dq, step);
            if (starts_keys(next)) finish_keys(dk, dv, step.tile, keys_empty);
            if (!Form::scores_ahead) start_weights(weights, next);
            start_dweights(dweights, next);
            finish_weights(weights, dweights, next);
        }
        multiply_weights(dk, dv, dq, weights, dweights, !starts_keys(step));
        wgmma_wait<0>();
        keep_registers(dq);
        finish_queries(dq, step);
        finish_keys(dk, dv, step.tile, &barriers.key_empty[key.stage]);
        if (lane_index() == 0) bulk_wait_read<0>();
    }
};

// ---- the kernel

template <typename Form>
__global__ void __launch_bounds__(ring_threads, 1)
    hopper_backward(const CU_GRID_CONSTANT TensorMap qkv, const CU_GRID_CONSTANT TensorMap queries,
                    const CU_GRID_CONSTANT TensorMap dy, const CU_GRID_CONSTANT TensorMap dqkv,
                    const CU_GRID_CONSTANT TensorMap sums, const float* statistics, int splits,
                    int split_rows, AttentionSizes s) {
    if constexpr (hopper_target) {
        CU_DYN_SHARED(unsigned char, dynamic);
        CU_SHARED(barriers, BackwardBarriers<Form>);
        const BackwardTiles<Form> tiles{align_shared(dynamic)};
        if (threadIdx.x == 0) {
            prefetch_tensor_map(&qkv);
            prefetch_tensor_map(&queries);
            prefetch_tensor_map(&dy);
            prefetch_tensor_map(&dqkv);
            prefetch_tensor_map(&sums);
            barriers.init();
        }
        block_sync();
        const KeyTiles work(s.sequence, Form::queries, splits, s.kv_heads);
        divide_roles(
            [&] { load_backward_tiles<Form>(&qkv, &queries, &dy, statistics, tiles, barriers, work, s); },
            [&](int number) {
                BackwardConsumer<Form>{tiles, barriers, {&dqkv, &sums}, number, work, split_rows, s}.run();
            });
    }
}

// ---- launch

// Of the workspace: the queries' numbers, then the splits' parts of dq.
template <typename Form>
struct BackwardWorkspace {
    int tiles, padded_queries;  // of a head: tiles of queries, and those they hold
    int64_t statistics, sums;   // numbers, float32

    BackwardWorkspace(const AttentionShape& shape, int splits)
        : tiles(static_cast<int>(blocks_for(shape.sequence, Form::queries))),
          padded_queries(tiles * Form::queries),
          statistics(2 * shape.batch * shape.heads * padded_queries),
          sums(splits * shape.batch * shape.heads * padded_queries * shape.head_dim) {}
    int64_t bytes() const { return (statistics + sums) * static_cast<int64_t>(sizeof(float)); }
};

// All tensors and the workspace begin at multiples of 16 bytes. splits: 1 ... tiles of 128 keys.
template <typename Form>
void launch_hopper_backward(CuStream stream, const AttentionBackward& a, int splits) {
    using Tiles = BackwardTiles<Form>;
    constexpr int D = Form::head_dim, M = Form::queries;
    const AttentionShape& shape = a.shape;
    const AttentionSizes sizes(shape);
    const BackwardWorkspace<Form> workspace(shape, splits);
    const int64_t columns = shape.heads * shape.head_dim, heads = shape.batch * shape.heads;
    float* const statistics = static_cast<float*>(a.workspace);
    float* const sums = statistics + workspace.statistics;
    bfloat16* const dqkv = a.dqkv.as<bfloat16>();
    const bfloat16 *const dy = a.dy.as<bfloat16>(), *const qkv = a.qkv.as<bfloat16>();

    CU_LAUNCH((query_statistics<D>),
              blocks_for(heads * workspace.padded_queries, row_kernel_threads / (D / 8)), row_kernel_threads,
              0, stream, statistics, dy, a.y.as<bfloat16>(), a.y_remainder.as<bfloat16>(),
              a.log_sum_exp.as<float>(), M, workspace.padded_queries, sizes);
    const auto split_rows = static_cast<int>(workspace.sums / splits / slice_row_numbers);
    const TensorMap sums_map =
        make_tensor_map(sums, {.name = "sums of dq",
                               .rank = 2,
                               .extent = {slice_row_numbers, workspace.sums / slice_row_numbers, 1},
                               .pitch = {slice_row_numbers * 4, 0},
                               .box = {slice_row_numbers, slice_rows, 1},
                               .swizzled = false});
    CU_LAUNCH((hopper_backward<Form>), static_cast<unsigned>(shape.batch * shape.kv_heads * splits),
              ring_threads, Tiles::shared_bytes, stream,
              head_map("qkv", qkv, shape.qkv_columns(), shape, tile_rows),
              head_map("queries", qkv, shape.qkv_columns(), shape, M), head_map("dy", dy, columns, shape, M),
              head_map("dqkv", dqkv, shape.qkv_columns(), shape, 16), sums_map, statistics, splits,
              split_rows, sizes);
    CU_LAUNCH((sum_query_gradients<D>), blocks_for(workspace.sums / splits, 16 * row_kernel_threads),
              row_kernel_threads, 0, stream, dqkv, sums, splits, workspace.tiles, M, sizes);
}

}  // namespace train_qat::CU_BACKEND::attention
