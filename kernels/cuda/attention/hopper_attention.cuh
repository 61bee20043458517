// The kernel of causal attention, forward, by Hopper's own instructions (hopper.cuh); FlashAttention-3 (arXiv 2407.08608) and
// attention_forward.cu describe the computation.
//
// One block per multiprocessor takes tiles of 128 queries of one head in turn. One warpgroup loads: the queries into one of
// two buffers, and tiles of 128 keys and their values, from the diagonal back to the first, into a ring. Two warpgroups
// compute 64 queries each. Of a tile of keys they issue the scores before they issue the product with the values of the tile
// before it, so that the tensor cores work while the softmax of the scores is formed in registers. Outputs leave through the
// queries' buffer.
//
// All tensors stay in place: maps of rank 3, (column, position, sequence), fill with zeros what lies behind a sequence's end
// and store nothing there. Only the diagonal tile hides keys; it comes first, outside of the loop.
//
// Form: what may differ between kernels, see HopperForm.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/attention_heads.cuh"
#include "kernels/cuda/attention/hopper_softmax.cuh"
#include "kernels/cuda/platform/hopper_ring.cuh"
#include "kernels/cuda/platform/tensor_map.cuh"

namespace train_qat::CU_BACKEND::attention {

// D: head dimension, 64 or 128.
template <int D>
struct HopperForm {
    static constexpr int head_dim = D;
    static constexpr int stages = D == 64 ? 3 : 2;  // of keys, and of values
    // Whether the first warpgroup leaves out those 64 keys of the diagonal tile that are later than all its queries.
    static constexpr bool skips_hidden_keys = false;
    // 2^x, for register `index` of a row's scores.
    CU_DEVICE static float exponential(float x, int /*index*/) { return flushed_exp2(x); }
};

constexpr int consumers = 2, hopper_threads = (1 + consumers) * warpgroup_threads;
constexpr int consumer_queries = 64, tile_rows = 128;  // rows: of queries, of keys
constexpr int part_columns = 64;                       // of a head: 128 bytes
constexpr int part_bytes = tile_rows * swizzle_row_bytes, consumer_bytes = part_bytes / consumers;

// Tiles of 128 rows of a head, in parts of 64 columns: two of queries, then the ring's of keys, then those of values.
template <typename Form>
struct HopperTiles {
    static constexpr int D = Form::head_dim, parts = D / part_columns, stages = Form::stages;
    static constexpr int query_buffers = 2, tile_bytes = parts * part_bytes;
    static constexpr int shared_bytes = (query_buffers + 2 * stages) * tile_bytes + swizzle_atom_bytes;

    unsigned char* memory;
    CU_DEVICE unsigned char* queries(int buffer) const { return memory + buffer * tile_bytes; }
    CU_DEVICE unsigned char* keys(int stage) const { return queries(query_buffers + stage); }
    CU_DEVICE unsigned char* values(int stage) const { return keys(stages + stage); }
};

// query_empty has an arrival of each consumer, key_empty and value_empty of each of their warps.
template <typename Form>
struct HopperBarriers {
    Barrier query_full[2], query_empty[2];
    Barrier key_full[Form::stages], key_empty[Form::stages];
    Barrier value_full[Form::stages], value_empty[Form::stages];

    CU_DEVICE void init() {
        constexpr int warps = consumers * warpgroup_threads / 32;
        for (int i = 0; i < 2; ++i) {
            barrier_init(&query_full[i], 1);
            barrier_init(&query_empty[i], consumers);
        }
        for (int i = 0; i < Form::stages; ++i) {
            barrier_init(&key_full[i], 1);
            barrier_init(&key_empty[i], warps);
            barrier_init(&value_full[i], 1);
            barrier_init(&value_empty[i], warps);
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

// 128 rows of a head from position `row` of sequence `batch` on, to land at `full`.
template <int parts>
CU_DEVICE void load_tile(unsigned char* tile, const TensorMap* qkv, int column_head, int row, int batch,
                         Barrier* full) {
    barrier_arrive_expect(full, parts * part_bytes);
    CU_UNROLL
    for (int part = 0; part < parts; ++part)
        tensor_load(tile + part * part_bytes, qkv, (column_head * parts + part) * part_columns, row, batch,
                    full);
}

template <typename Form>
CU_DEVICE void load_tiles(const TensorMap* qkv, HopperTiles<Form> tiles, HopperBarriers<Form>& barriers,
                          TileOrder order, const AttentionSizes& s) {
    constexpr int parts = HopperTiles<Form>::parts;
    RingPlace<2> query(1);
    RingPlace<Form::stages> ring(1);
    TileOrder::Item item;
    for (int round = 0; round < order.rounds() && order.find(round, item); ++round, query.advance()) {
        const int batch = item.head / s.heads, head = item.head % s.heads, kv_head = head / s.group;
        barrier_wait(&barriers.query_empty[query.stage], query.parity);
        load_tile<parts>(tiles.queries(query.stage), qkv, head, item.tile * tile_rows, batch,
                         &barriers.query_full[query.stage]);
        for (int tile = item.tile; tile >= 0; --tile, ring.advance()) {
            barrier_wait(&barriers.key_empty[ring.stage], ring.parity);
            load_tile<parts>(tiles.keys(ring.stage), qkv, s.heads + kv_head, tile * tile_rows, batch,
                             &barriers.key_full[ring.stage]);
            barrier_wait(&barriers.value_empty[ring.stage], ring.parity);
            load_tile<parts>(tiles.values(ring.stage), qkv, s.heads + s.kv_heads + kv_head, tile * tile_rows,
                             batch, &barriers.value_full[ring.stage]);
        }
    }
}

// ---- a consumer, one warpgroup

// scores (64, 2 count) = q kᵀ, of the rows at `queries` and as many keys.
template <int D, int count>
CU_DEVICE void start_scores(float (&scores)[count], const unsigned char* queries, const unsigned char* keys) {
    const uint64_t a = k_major_descriptor(queries), b = k_major_descriptor(keys);
    wgmma_fence();
    CU_UNROLL
    for (int k = 0; k < D; k += 16) {
        const int offset = k / part_columns * part_bytes + k % part_columns * 2;
        wgmma(scores, advance_descriptor(a, offset), advance_descriptor(b, offset), k > 0);
    }
    wgmma_commit();
}

// out (64, 2 count) (+)= weights v
template <int count>
CU_DEVICE void start_values(float (&out)[count], const uint32_t (&weights)[tile_rows / 16][4],
                            const unsigned char* values, bool accumulate) {
    const uint64_t b = mn_major_descriptor(values, part_bytes);
    wgmma_fence();
    CU_UNROLL
    for (int k = 0; k < tile_rows / 16; ++k)
        wgmma<Major::mn>(out, weights[k], advance_descriptor(b, k * 16 * swizzle_row_bytes),
                         accumulate || k > 0);
    wgmma_commit();
}

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
        start_scores<D>(scores, own_queries(), tiles.keys(key.stage));
        release_stored();
        wgmma_wait<0>();
        keep_registers(scores);
        release_keys();
        hide_later_keys(scores, number * consumer_queries);
        state.clear();
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

    // out: o of the diagonal tile of keys and the `before` ones before it.
    CU_DEVICE void attend(float (&out)[D / 2], int before) {
        uint32_t weights[tile_rows / 16][4];
        barrier_wait(&barriers.query_full[query.stage], query.parity);
        first_weights(weights);
        wait_for_values();
        for (int left = before; left > 0; --left) {
            float scores[tile_rows / 2], factor[2];
            barrier_wait(&barriers.key_full[key.stage], key.parity);
            start_scores<D>(scores, own_queries(), tiles.keys(key.stage));
            start_values(out, weights, tiles.values(value.stage), left < before);
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
            if (raised) scale_rows(out, factor);
            pack_weights(weights, scores);
        }
        start_values(out, weights, tiles.values(value.stage), before > 0);
        finish_values(out, weights, next_values());
    }
    CU_DEVICE void finish_values(float (&out)[D / 2], uint32_t (&weights)[tile_rows / 16][4],
                                 Barrier* multiplied) {
        wgmma_wait<0>();
        keep_registers(out);
        for (auto& operand : weights) keep_registers(operand);
        release(multiplied);
    }

    // y = o / l and log_sum_exp = m ln 2 + ln l. first: position of the warpgroup's first query; log_sum_exp: of this head.
    CU_DEVICE void finish(float (&out)[D / 2], const TensorMap* y, float* log_sum_exp, int head, int first,
                          int batch, int sequence) {
        float inverse[2];
        CU_UNROLL
        for (int half = 0; half < 2; ++half) {
            const float sum = row_sum(state.sum[half]);
            inverse[half] = 1.0f / sum;
            const int position = first + warpgroup_row(half);
            if (lane_index() % 4 == 0 && position < sequence)
                store(log_sum_exp + position, state.maximum[half] * static_cast<float>(ln_2) + logf(sum));
        }
        scale_rows(out, inverse);
        group_sync(1 + number, warpgroup_threads);  // all have multiplied with these queries
        const int lane = lane_index(), row = warp_index() % 4 * 16 + lane % 16;
        CU_UNROLL
        for (int j = 0; j < D / 8; j += 2) {
            uint32_t pairs[4];
            CU_UNROLL
            for (int i = 0; i < 4; ++i) pairs[i] = pack_bfloat16(out[4 * j + 2 * i], out[4 * j + 2 * i + 1]);
            stmatrix_x4(own_queries() + j / 8 * part_bytes + swizzled_chunk(row, j % 8 + lane / 16), pairs);
        }
        fence_async_proxy();
        group_sync(1 + number, warpgroup_threads);
        if (!stores()) return;
        CU_UNROLL
        for (int part = 0; part < D / part_columns; ++part)
            tensor_store(y, head * D + part * part_columns, first, batch, own_queries() + part * part_bytes);
        bulk_commit();
    }
};

template <typename Form>
CU_DEVICE void consume_tiles(const TensorMap* y, float* log_sum_exp, HopperTiles<Form> tiles,
                             HopperBarriers<Form>& barriers, TileOrder order, const AttentionSizes& s,
                             int number) {
    Consumer<Form> consumer{tiles, barriers, number, s.binary_root};
    TileOrder::Item item;
    for (int round = 0; round < order.rounds() && order.find(round, item); ++round) {
        const int batch = item.head / s.heads, head = item.head % s.heads;
        float out[Form::head_dim / 2];
        consumer.attend(out, item.tile);
        consumer.finish(out, y, log_sum_exp + start_of_head(batch, head, s), head,
                        item.tile * tile_rows + number * consumer_queries, batch, s.sequence);
        consumer.query.advance();
    }
    if (consumer.stores()) bulk_wait_read<0>();
}

// ---- the kernel

template <typename Form>
__global__ void __launch_bounds__(hopper_threads, 1)
    hopper_forward(const CU_GRID_CONSTANT TensorMap qkv, const CU_GRID_CONSTANT TensorMap y,
                   float* log_sum_exp, TileOrder order, AttentionSizes s) {
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
            consume_tiles<Form>(&y, log_sum_exp, tiles, barriers, order, s, role - 1);
        }
    }
}

// qkv and y begin at multiples of 16 bytes.
template <typename Form>
void launch_hopper_forward(CuStream stream, int multiprocessors, bfloat16* y, float* log_sum_exp,
                           const bfloat16* qkv, const AttentionShape& shape) {
    const auto map = [&](const char* name, const bfloat16* first, int64_t columns, int rows) {
        const int64_t pitch = columns * size_of(DType::bfloat16);
        return make_tensor_map(first, {.name = name,
                                       .rank = 3,
                                       .extent = {columns, shape.sequence, shape.batch},
                                       .pitch = {pitch, shape.sequence * pitch},
                                       .box = {part_columns, rows, 1},
                                       .swizzled = true});
    };
    const TensorMap qkv_map = map("qkv", qkv, shape.qkv_columns(), tile_rows);
    const TensorMap y_map = map("y", y, shape.heads * shape.head_dim, consumer_queries);
    const int tiles = static_cast<int>(blocks_for(shape.sequence, tile_rows));
    const int heads = static_cast<int>(shape.batch * shape.heads);
    const TileOrder order{tiles, heads, std::max(1, multiprocessors / 2)};
    CU_LAUNCH((hopper_forward<Form>), static_cast<unsigned>(std::min(tiles * heads, multiprocessors)),
              hopper_threads, HopperTiles<Form>::shared_bytes, stream, qkv_map, y_map, log_sum_exp, order,
              AttentionSizes(shape));
}

}  // namespace train_qat::CU_BACKEND::attention
