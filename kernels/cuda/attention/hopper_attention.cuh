// The kernel of causal attention, forward, by Hopper's own instructions (hopper.cuh); FlashAttention-3 (arXiv 2407.08608) and
// attention_forward.cu describe the computation.
//
// One block per multiprocessor takes tiles of 128 queries of one head in turn. One warpgroup loads: the queries into one of
// two buffers, and tiles of 128 keys and their values, from the diagonal back to the first, into a ring. Two warpgroups
// compute 64 queries each. Of a tile of keys they issue the scores before they issue the product with the values of the tile
// before it, so that the tensor cores work while the softmax of the scores is formed in registers. Outputs leave through the
// queries' buffer.
//
// Only the diagonal tile hides keys; it comes first, outside of the loop.
//
// A form writes what y lacks, too, for the backward pass (hopper_backward.cuh): y before rounding, divided by the sum of the weights as
// they were multiplied with, rounded to bfloat16, minus y. Divided by that of the exact weights, as y is, values that are nearly the
// same would keep an error as large as their differences. The sum is a product with ones.
//
// Form: what may differ between kernels, see HopperForm.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/hopper_heads.cuh"
#include "kernels/cuda/attention/hopper_softmax.cuh"

namespace train_qat::CU_BACKEND::attention {

// D: head dimension, 64 or 128. remainder: whether to write what y lacks.
template <int D, bool remainder = false>
struct HopperForm {
    static constexpr bool keeps_remainder = remainder;
    static constexpr int head_dim = D;
    static constexpr int stages = D == 64 ? 3 : 2;  // of keys, and of values
    // Whether the first warpgroup leaves out those 64 keys of the diagonal tile that are later than all its queries.
    static constexpr bool skips_hidden_keys = false;
    // 2^x, for register `index` of a row's scores.
    CU_DEVICE static float exponential(float x, int /*index*/) { return flushed_exp2(x); }
};

// Tiles of 128 rows of a head, in parts of 64 columns: two of queries, then the ring's of keys, those of
// values, and one of what y loses.
template <typename Form>
struct HopperTiles {
    static constexpr int D = Form::head_dim, parts = D / part_columns, stages = Form::stages;
    static constexpr int query_buffers = 2, tile_bytes = parts * part_bytes;
    static constexpr int shared_bytes =
        (query_buffers + 2 * stages + Form::keeps_remainder) * tile_bytes + swizzle_atom_bytes;

    unsigned char* memory;
    CU_DEVICE unsigned char* queries(int buffer) const { return memory + buffer * tile_bytes; }
    CU_DEVICE unsigned char* keys(int stage) const { return queries(query_buffers + stage); }
    CU_DEVICE unsigned char* values(int stage) const { return keys(stages + stage); }
    CU_DEVICE unsigned char* remainders() const { return values(stages); }
};

// query_empty has an arrival of each consumer, key_empty and value_empty of each of their warps.
template <typename Form>
struct HopperBarriers {
    Barrier query_full[2], query_empty[2];
    Barrier key_full[Form::stages], key_empty[Form::stages];
    Barrier value_full[Form::stages], value_empty[Form::stages];

    CU_DEVICE void init() {
        for (int i = 0; i < 2; ++i) {
            barrier_init(&query_full[i], 1);
            barrier_init(&query_empty[i], consumers);
        }
        for (int i = 0; i < Form::stages; ++i) {
            barrier_init(&key_full[i], 1);
            barrier_init(&key_empty[i], consumer_warps);
            barrier_init(&value_full[i], 1);
            barrier_init(&value_empty[i], consumer_warps);
        }
    }
};

// Which tiles a block computes, in which order: group after group of heads, of which the cache holds keys and values; within a
// group the last tile of every head, which has most keys, then the one before it, and so on. Every other round the blocks
// choose in reverse, so that none gets the larger tile each time.
struct TileOrder {
    int tiles, heads, group;  // tiles of a head; heads of all sequences; heads of a group

    struct Item {
        int head, tile;
    };
    CU_DEVICE int rounds() const {
        const int blocks = static_cast<int>(gridDim.x);
        return (tiles * heads + blocks - 1) / blocks;
    }
    // False: nothing, which happens in the last round only.
    CU_DEVICE bool find(int round, Item& item) const {
        const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
        const int position = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
        if (position >= tiles * heads) return false;
        const int first_head = position / (tiles * group) * group, within = position % (tiles * group);
        const int size = group < heads - first_head ? group : heads - first_head;
        item = {first_head + within % size, tiles - 1 - within / size};
        return true;
    }
};

// ---- the producer, one thread

template <typename Form>
CU_DEVICE void load_tiles(const TensorMap* qkv, HopperTiles<Form> tiles, HopperBarriers<Form>& barriers,
                          TileOrder order, const AttentionSizes& s) {
    constexpr int parts = HopperTiles<Form>::parts, bytes = HopperTiles<Form>::tile_bytes;
    const auto load = [&](unsigned char* to, int column_head, int tile, int batch, Barrier* full) {
        barrier_arrive_expect(full, bytes);
        load_tile<parts, tile_rows>(to, qkv, column_head, tile * tile_rows, batch, full);
    };
    RingPlace<2> query(1);
    RingPlace<Form::stages> ring(1);
    TileOrder::Item item;
    for (int round = 0; round < order.rounds() && order.find(round, item); ++round, query.advance()) {
        const int batch = item.head / s.heads, head = item.head % s.heads, kv_head = head / s.group;
        barrier_wait(&barriers.query_empty[query.stage], query.parity);
        load(tiles.queries(query.stage), head, item.tile, batch, &barriers.query_full[query.stage]);
        for (int tile = item.tile; tile >= 0; --tile, ring.advance()) {
            barrier_wait(&barriers.key_empty[ring.stage], ring.parity);
            load(tiles.keys(ring.stage), s.heads + kv_head, tile, batch, &barriers.key_full[ring.stage]);
            barrier_wait(&barriers.value_empty[ring.stage], ring.parity);
            load(tiles.values(ring.stage), s.heads + s.kv_heads + kv_head, tile, batch,
                 &barriers.value_full[ring.stage]);
        }
    }
}

// ---- a consumer, one warpgroup

// The numbers in which a consumer's tile is computed, and its walk over the ring.
template <typename Form>
struct Consumer {
    static constexpr int D = Form::head_dim;
    HopperTiles<Form> tiles;
    HopperBarriers<Form>& barriers;
    int number;   // 0 or 1
    float scale;  // of scores: to exponents of two

    RingPlace<2> query{0};
    RingPlace<Form::stages> key{0}, value{0};
    bool stored = false;  // a tile before, whose buffer the producer waits for
    RowState state{};
    float rounded_sum[1][1][4] = {};  // of the weights as they were multiplied with: rows g, g, g + 8, g + 8

    // One thread of it starts and awaits stores.
    CU_DEVICE bool stores() const { return threadIdx.x % warpgroup_threads == 0; }
    CU_DEVICE unsigned char* own_queries() const {
        return tiles.queries(query.stage) + number * consumer_bytes;
    }
    CU_DEVICE void release(Barrier* empty) const {
        if (lane_index() == 0) barrier_arrive(empty);
    }
    CU_DEVICE void release_keys() {
        release(&barriers.key_empty[key.stage]);
        key.advance();
    }
    CU_DEVICE void wait_for_values() { barrier_wait(&barriers.value_full[value.stage], value.parity); }
    // Moves on; what to release when the tile before has been multiplied with.
    CU_DEVICE Barrier* next_values() {
        Barrier* const empty = &barriers.value_empty[value.stage];
        value.advance();
        return empty;
    }
    // The buffer that was stored from before has long been read, when the next scores are under way.
    CU_DEVICE void release_stored() {
        if (stored && stores()) {
            bulk_wait_read<0>();
            barrier_arrive(&barriers.query_empty[1 - query.stage]);
        }
        stored = true;
    }

    // The softmax of the diagonal tile, of whose keys the first 2 count are looked at.
    template <int count>
    CU_DEVICE void weigh_diagonal(float (&scores)[count]) {
        float factor[2];
        barrier_wait(&barriers.key_full[key.stage], key.parity);
        start_scores<D, tile_rows, tile_rows>(scores, own_queries(), tiles.keys(key.stage));
        release_stored();
        wgmma_wait<0>();
        keep_registers(scores);
        release_keys();
        hide_later_keys(scores, number * consumer_rows);
        state.clear();
        for (float& sum : rounded_sum[0][0]) sum = 0.0f;
        raise_maximum(state, factor, scores, scale);
        make_weights(state, scores, scale, [](float x, int) { return flushed_exp2(x); });
    }

    CU_DEVICE void first_weights(uint32_t (&weights)[tile_rows / 16][4]) {
        float scores[tile_rows / 2];
        if (Form::skips_hidden_keys && number == 0) {
            float half[tile_rows / 4];
            weigh_diagonal(half);
            CU_UNROLL
            for (int i = 0; i < tile_rows / 2; ++i) scores[i] = i < tile_rows / 4 ? half[i] : 0.0f;
        } else {
            weigh_diagonal(scores);
        }
        pack_weights(weights, scores);
    }

    CU_DEVICE void sum_rounded(const uint32_t (&weights)[tile_rows / 16][4]) {
        if constexpr (Form::keeps_remainder) {
            constexpr uint32_t ones[1][2] = {{0x3f803f80, 0x3f803f80}};
            CU_UNROLL
            for (int k = 0; k < tile_rows / 16; ++k) {
                const uint32_t operand[1][4] = {{weights[k][0], weights[k][1], weights[k][2], weights[k][3]}};
                mma_tile<16, 8>(rounded_sum, operand, ones);
            }
        }
    }

    // out: o of the diagonal tile of keys and the `before` ones before it.
    CU_DEVICE void attend(float (&out)[D / 2], int before) {
        uint32_t weights[tile_rows / 16][4];
        barrier_wait(&barriers.query_full[query.stage], query.parity);
        first_weights(weights);
        wait_for_values();
        for (int left = before; left > 0; --left) {
            float scores[tile_rows / 2], factor[2];
            barrier_wait(&barriers.key_full[key.stage], key.parity);
            start_scores<D, tile_rows, tile_rows>(scores, own_queries(), tiles.keys(key.stage));
            start_weighted_rows(out, weights, tiles.values(value.stage), left < before);
            sum_rounded(weights);
            wgmma_wait<1>();
            keep_registers(scores);
            release_keys();
            const bool raised = raise_maximum(state, factor, scores, scale);
            make_weights(state, scores, scale, [](float x, int i) { return Form::exponential(x, i); });
            // Weights are made while the tensor cores are busy: left alone, the compiler would wait for these first. A loop
            // stops it, and that for the next tile of values has to stand somewhere.
            keep_registers(scores);
            Barrier* const multiplied = next_values();
            wait_for_values();
            finish_values(out, weights, multiplied);
            if (raised) {
                scale_rows(out, factor);
                scale_rows(rounded_sum[0][0], factor);
            }
            pack_weights(weights, scores);
        }
        start_weighted_rows(out, weights, tiles.values(value.stage), before > 0);
        sum_rounded(weights);
        finish_values(out, weights, next_values());
    }
    CU_DEVICE void finish_values(float (&out)[D / 2], uint32_t (&weights)[tile_rows / 16][4],
                                 Barrier* multiplied) {
        wgmma_wait<0>();
        keep_registers(out);
        for (auto& operand : weights) keep_registers(operand);
        release(multiplied);
    }

    // y = o / l, what rounding takes from it, and log_sum_exp = m ln 2 + ln l. first: position of the warpgroup's first query; log_sum_exp: of this head.
    CU_DEVICE void finish(float (&out)[D / 2], const TensorMap* y, const TensorMap* remainder,
                          float* log_sum_exp, int head, int first, int batch, int sequence) {
        float inverse[2];
        CU_UNROLL
        for (int half = 0; half < 2; ++half) {
            const float sum = row_sum(state.sum[half]);
            inverse[half] = 1.0f / sum;
            const int position = first + warpgroup_row(half);
            if (lane_index() % 4 == 0 && position < sequence)
                store(log_sum_exp + position, state.maximum[half] * static_cast<float>(ln_2) + logf(sum));
        }
        group_sync(1 + number, warpgroup_threads);  // all have multiplied with these queries
        const int row = number * consumer_rows + warp_index() % 4 * 16;
        store_product<tile_rows>(tiles.queries(query.stage), row, out, [&](float low, float high, int half) {
            return pack_bfloat16(low * inverse[half], high * inverse[half]);
        });
        if constexpr (Form::keeps_remainder) {
            const float exact[2] = {1.0f / rounded_sum[0][0][0], 1.0f / rounded_sum[0][0][2]};
            store_product<tile_rows>(tiles.remainders(), row, out, [&](float low, float high, int half) {
                const uint32_t y = pack_bfloat16(low * inverse[half], high * inverse[half]);
                return pack_bfloat16(low * exact[half] - low_bfloat16(y),
                                     high * exact[half] - high_bfloat16(y));
            });
        }
        fence_async_proxy();
        group_sync(1 + number, warpgroup_threads);
        if (!stores()) return;
        CU_UNROLL
        for (int part = 0; part < D / part_columns; ++part) {
            const int column = head * D + part * part_columns, place = part * part_bytes;
            tensor_store(y, column, first, batch, own_queries() + place);
            if constexpr (Form::keeps_remainder)
                tensor_store(remainder, column, first, batch,
                             tiles.remainders() + number * consumer_bytes + place);
        }
        bulk_commit();
    }
};

template <typename Form>
CU_DEVICE void consume_tiles(const TensorMap* y, const TensorMap* remainder, float* log_sum_exp,
                             HopperTiles<Form> tiles, HopperBarriers<Form>& barriers, TileOrder order,
                             const AttentionSizes& s, int number) {
    Consumer<Form> consumer{tiles, barriers, number, s.binary_root};
    TileOrder::Item item;
    for (int round = 0; round < order.rounds() && order.find(round, item); ++round) {
        const int batch = item.head / s.heads, head = item.head % s.heads;
        float out[Form::head_dim / 2];
        consumer.attend(out, item.tile);
        consumer.finish(out, y, remainder, log_sum_exp + start_of_head(batch, head, s), head,
                        item.tile * tile_rows + number * consumer_rows, batch, s.sequence);
        consumer.query.advance();
    }
    if (consumer.stores()) bulk_wait_read<0>();
}

// ---- the kernel

template <typename Form>
__global__ void __launch_bounds__(hopper_threads, 1)
    hopper_forward(const CU_GRID_CONSTANT TensorMap qkv, const CU_GRID_CONSTANT TensorMap y,
                   const CU_GRID_CONSTANT TensorMap remainder, float* log_sum_exp, TileOrder order,
                   AttentionSizes s) {
    if constexpr (hopper_target) {
        CU_DYN_SHARED(unsigned char, dynamic);
        CU_SHARED(barriers, HopperBarriers<Form>);
        const HopperTiles<Form> tiles{align_shared(dynamic)};
        if (threadIdx.x == 0) {
            prefetch_tensor_map(&qkv);
            prefetch_tensor_map(&y);
            barriers.init();
            fence_barrier_init();
            fence_async_proxy();
        }
        block_sync();
        const int role = static_cast<int>(threadIdx.x) / warpgroup_threads;
        if (role == 0) {
            shrink_registers<24>();
            if (threadIdx.x == 0) load_tiles<Form>(&qkv, tiles, barriers, order, s);
        } else {
            grow_registers<240>();
            consume_tiles<Form>(&y, &remainder, log_sum_exp, tiles, barriers, order, s, role - 1);
        }
    }
}

// All begin at multiples of 16 bytes. remainder (B*T, H*D): where the form keeps it.
template <typename Form>
void launch_hopper_forward(CuStream stream, int multiprocessors, bfloat16* y, bfloat16* remainder,
                           float* log_sum_exp, const bfloat16* qkv, const AttentionShape& shape) {
    const int64_t columns = shape.heads * shape.head_dim;
    const TensorMap qkv_map = head_map("qkv", qkv, shape.qkv_columns(), shape, tile_rows);
    const TensorMap y_map = head_map("y", y, columns, shape, consumer_rows);
    const TensorMap remainder_map =
        Form::keeps_remainder ? head_map("y_remainder", remainder, columns, shape, consumer_rows) : y_map;
    const int tiles = static_cast<int>(blocks_for(shape.sequence, tile_rows));
    const int heads = static_cast<int>(shape.batch * shape.heads);
    const TileOrder order{tiles, heads, std::max(1, multiprocessors / 2)};
    CU_LAUNCH((hopper_forward<Form>), static_cast<unsigned>(std::min(tiles * heads, multiprocessors)),
              hopper_threads, HopperTiles<Form>::shared_bytes, stream, qkv_map, y_map, remainder_map,
              log_sum_exp, order, AttentionSizes(shape));
}

}  // namespace train_qat::CU_BACKEND::attention
