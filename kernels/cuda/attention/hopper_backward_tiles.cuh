// Of attention's backward kernel for Hopper (hopper_backward.cuh): what its blocks keep in shared memory, which tiles they visit, and
// who loads them.
#pragma once

#include "kernels/cuda/attention/hopper_backward_rows.cuh"

namespace train_qat::CU_BACKEND::attention {

// What may differ between kernels. D: head dimension, 64 or 128. Registers ask for smaller tiles of queries of large heads.
template <int D>
struct HopperBackwardForm {
    static constexpr int head_dim = D;
    static constexpr int queries = D == 64 ? 128 : 64;  // of a tile
    static constexpr int stages = D == 64 ? 3 : 2;      // of queries and their dy
    static constexpr int value_buffers = 1;             // a tile's values are free before its keys
    // Whether the scores of a tile are under way while dq of the tile before leaves.
    static constexpr bool scores_ahead = true;
};

constexpr int key_buffers = 2;  // the next tile's keys are multiplied with before dk and dv of one have left

template <typename Form>
struct BackwardTiles {
    static constexpr int D = Form::head_dim, M = Form::queries, parts = D / part_columns;
    static constexpr int key_bytes = parts * part_bytes, query_bytes = parts * part_bytes_of(M);
    static constexpr int statistics_bytes = 2 * M * static_cast<int>(sizeof(float));
    static constexpr int ds_bytes = M / part_columns * part_bytes;  // parts of 64 queries: rows are keys
    static constexpr int statistics_start = (key_buffers + Form::value_buffers) * key_bytes +
                                            2 * Form::stages * query_bytes + ds_bytes +
                                            consumer_warps * slice_bytes;
    static constexpr int shared_bytes =
        statistics_start + Form::stages * statistics_bytes + swizzle_atom_bytes;

    unsigned char* memory;
    CU_DEVICE unsigned char* keys(int buffer) const { return memory + buffer * key_bytes; }
    CU_DEVICE unsigned char* values(int buffer) const { return keys(key_buffers + buffer); }
    CU_DEVICE unsigned char* queries(int stage) const {
        return keys(key_buffers + Form::value_buffers) + stage * query_bytes;
    }
    CU_DEVICE unsigned char* douts(int stage) const { return queries(Form::stages + stage); }
    CU_DEVICE unsigned char* ds() const { return queries(2 * Form::stages); }
    // A consuming warp's own: dq, later dk and dv, on their way out.
    CU_DEVICE unsigned char* slice(int warp) const { return ds() + ds_bytes + warp * slice_bytes; }
    CU_DEVICE float* statistics(int stage) const {
        return reinterpret_cast<float*>(memory + statistics_start + stage * statistics_bytes);
    }
};

// empty ones have an arrival of each consuming warp, and so has ds_empty.
template <typename Form>
struct BackwardBarriers {
    Barrier key_full[key_buffers], key_empty[key_buffers];
    Barrier value_full[Form::value_buffers], value_empty[Form::value_buffers];
    Barrier query_full[Form::stages], query_empty[Form::stages];
    Barrier ds_empty;

    CU_DEVICE void init() {
        init_ring<key_buffers>({key_full, key_empty}, consumer_warps);
        init_ring<Form::value_buffers>({value_full, value_empty}, consumer_warps);
        barrier_init(&ds_empty, consumer_warps);
        init_ring<Form::stages>({query_full, query_empty}, consumer_warps);
    }
};

// Which tile of keys a split visits in a round: every other round the splits of a head take theirs in reverse order, so that all have
// about as much to do.
TRAIN_QAT_HOST_DEVICE constexpr int key_tile(int round, int split, int splits) {
    return round * splits + (round % 2 == 0 ? split : splits - 1 - split);
}

// A block's work.
struct KeyTiles {
    int tiles, query_tiles, splits;  // of a head: tiles of keys, of queries; blocks
    int batch, kv_head, split;       // this block's

    CU_DEVICE KeyTiles(int sequence, int tile_queries, int splits_, int kv_heads)
        : tiles((sequence + tile_rows - 1) / tile_rows),
          query_tiles((sequence + tile_queries - 1) / tile_queries),
          splits(splits_),
          batch(static_cast<int>(blockIdx.x) / splits_ / kv_heads),
          kv_head(static_cast<int>(blockIdx.x) / splits_ % kv_heads),
          split(static_cast<int>(blockIdx.x) % splits_) {}
    // Of a round; `tiles` or more: nothing is left.
    CU_DEVICE int tile(int round) const { return key_tile(round, split, splits); }
};

// ---- the producer, one thread

template <typename Form>
CU_DEVICE void load_backward_tiles(const TensorMap* qkv, const TensorMap* queries, const TensorMap* dy,
                                   const float* statistics, BackwardTiles<Form> tiles,
                                   BackwardBarriers<Form>& barriers, KeyTiles work, const AttentionSizes& s) {
    using Tiles = BackwardTiles<Form>;
    constexpr int M = Tiles::M;
    RingPlace<key_buffers> key(1);
    RingPlace<Form::value_buffers> value(1);
    RingPlace<Form::stages> query(1);
    for (int round = 0, tile; (tile = work.tile(round)) < work.tiles;
         ++round, key.advance(), value.advance()) {
        const auto load = [&](unsigned char* to, int column_head, Barrier* full) {
            barrier_arrive_expect(full, Tiles::key_bytes);
            load_tile<Tiles::parts, tile_rows>(to, qkv, column_head, tile * tile_rows, work.batch, full);
        };
        barrier_wait(&barriers.key_empty[key.stage], key.parity);
        load(tiles.keys(key.stage), s.heads + work.kv_head, &barriers.key_full[key.stage]);
        barrier_wait(&barriers.value_empty[value.stage], value.parity);
        load(tiles.values(value.stage), s.heads + s.kv_heads + work.kv_head,
             &barriers.value_full[value.stage]);
        for (int head = work.kv_head * s.group; head < (work.kv_head + 1) * s.group; ++head)
            for (int q = tile * (tile_rows / M); q < work.query_tiles; ++q, query.advance()) {
                Barrier* const full = &barriers.query_full[query.stage];
                barrier_wait(&barriers.query_empty[query.stage], query.parity);
                barrier_arrive_expect(full, 2 * Tiles::query_bytes + Tiles::statistics_bytes);
                load_tile<Tiles::parts, M>(tiles.queries(query.stage), queries, head, q * M, work.batch,
                                           full);
                load_tile<Tiles::parts, M>(tiles.douts(query.stage), dy, head, q * M, work.batch, full);
                bulk_load(tiles.statistics(query.stage),
                          statistics + 2 * M * (int64_t{work.batch * s.heads + head} * work.query_tiles + q),
                          Tiles::statistics_bytes, full);
            }
    }
}

}  // namespace train_qat::CU_BACKEND::attention
