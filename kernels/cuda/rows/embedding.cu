// Token embedding, tied to the LM head: both read the same quantized rows and add to the same gradient.
//     forward:   y[m,:] = s[token] * q[token,:]
//     backward:  dq[token,:] += s[token] * dy[m,:], in the order of m
//
// Floor: forward reads q of M rows and writes y; backward reads dy once and reads and writes dq of the tokens that occur.
//
// Backward must add the rows of one token one after the other, so it sorts the rows by token first, keeping their order,
// and then gives each token to one warp per 128 columns:
//   1. each block sorts a window of 1024 keys (token, row) in registers; keys are unique, so any sort is stable;
//   2. a key's place in the sorted whole is the number of smaller keys, found in each window by bisection;
//   3. the warp that finds the first key of a token adds all its rows and writes dq once.
// The sort moves 28 bytes a row, and its bisections find the windows in the caches.
#include "kernels/checks.h"
#include "kernels/cuda/rows/row_tile.cuh"
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int warps = 8;

// ---- forward

constexpr int vectors_per_lane = 4;

// A warp looks up vectors_per_lane * 32 * width columns of one row.
template <typename T, int width>
__global__ void __launch_bounds__(warps * 32)
    look_up_rows(float* y, const int32_t* tokens, const T* table, const float* row_scale, int64_t rows,
                 int64_t columns) {
    const int64_t m = int64_t{blockIdx.x} * warps + warp_index();
    if (m >= rows) return;
    const int64_t token = load(tokens + m);
    const float scale = row_scale != nullptr ? load(row_scale + token) : 1.0f;
    const int64_t first = (int64_t{blockIdx.y} * vectors_per_lane * 32 + lane_index()) * width;
    Vector<T, width> levels[vectors_per_lane];
    CU_UNROLL
    for (int i = 0; i < vectors_per_lane; ++i) {
        const int64_t column = first + i * 32 * width;
        if (column < columns) levels[i] = load_vector<width>(table + token * columns + column);
    }
    CU_UNROLL
    for (int i = 0; i < vectors_per_lane; ++i) {
        const int64_t column = first + i * 32 * width;
        if (column >= columns) return;
        Vector<float, width> out;
        CU_UNROLL
        for (int j = 0; j < width; ++j) out[j] = scale * static_cast<float>(levels[i][j]);
        store_vector<width>(y + m * columns + column, out);
    }
}

// ---- backward: rows in the order of their tokens

// Keys compare by token, then by row.
using Key = uint64_t;
constexpr Key no_key = ~Key{0};  // behind all keys
constexpr int window = 1024;     // keys, and threads of the block that sorts them

CU_DEVICE int64_t token_of(Key key) {
    return static_cast<int64_t>(key >> 32);
}
CU_DEVICE int32_t row_of(Key key) {
    return static_cast<int32_t>(key & 0xffffffffu);
}

// Bitonic sort, one key a thread. Partners less than a warp apart meet in the warp, others in shared memory.
__global__ void __launch_bounds__(window) sort_windows(Key* keys, const int32_t* tokens, int64_t rows) {
    CU_SHARED(exchange, Key[window]);
    const int index = static_cast<int>(threadIdx.x);
    const int64_t m = int64_t{blockIdx.x} * window + index;
    Key key = m < rows ? static_cast<Key>(load(tokens + m)) << 32 | static_cast<Key>(m) : no_key;
    for (int sorted = 2; sorted <= window; sorted *= 2) {
        for (int distance = sorted / 2; distance > 0; distance /= 2) {
            Key other;
            if (distance < 32) {
                other = shuffle_xor(key, distance);
            } else {
                block_sync();
                store_shared(exchange + index, key);
                block_sync();
                other = load_shared(exchange + (index ^ distance));
            }
            const bool ascending = (index & sorted) == 0, first = (index & distance) == 0;
            const bool keep_smaller = ascending == first;
            key = (other < key) == keep_smaller ? other : key;
        }
    }
    if (m < rows) store(keys + m, key);
}

// The sorted windows become one sorted list. `searches` windows are bisected side by side: the loads of one
// bisection wait for each other.
__global__ void __launch_bounds__(256) merge_windows(Key* merged, const Key* windows, int64_t rows) {
    constexpr int searches = 4;
    const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (index >= rows) return;
    const Key key = load(windows + index);
    const int64_t own = index / window;
    int64_t place = index % window;  // the smaller keys of its own window
    for (int64_t first = 0; first * window < rows; first += searches) {
        int smaller[searches] = {};
        for (int step = window; step > 0; step /= 2) {
            CU_UNROLL
            for (int i = 0; i < searches; ++i) {
                const int64_t last = (first + i) * window + smaller[i] + step - 1;
                if (first + i == own || smaller[i] + step > window || last >= rows) continue;
                if (load(windows + last) < key) smaller[i] += step;
            }
        }
        CU_UNROLL
        for (int i = 0; i < searches; ++i) place += smaller[i];
    }
    store(merged + place, key);
}

// Adds all rows of the token that stands first at `place` of the sorted list, one warp's columns of them.
template <int width>
CU_DEVICE void add_rows_of_token(float* dq, const float* dy, const Key* sorted, const float* row_scale,
                                 int64_t token, int64_t place, int64_t rows, int64_t columns) {
    constexpr int in_flight = 16;  // rows: a frequent token is a long sum by one warp
    const int64_t column = (int64_t{blockIdx.y} * 32 + lane_index()) * width;
    const bool inside = column < columns;  // lanes outside still hand around keys
    const float scale = row_scale != nullptr ? load(row_scale + token) : 1.0f;
    Vector<float, width> total = {};
    if (inside) total = load_vector<width>(dq + token * columns + column);
    uint32_t same;  // bit i: the key i places further has this token
    do {
        const bool looks = lane_index() < in_flight && place + lane_index() < rows;
        const Key key = looks ? load(sorted + place + lane_index()) : no_key;
        same = ballot(token_of(key) == token);
        Vector<float, width> gradient[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            const int64_t m = shuffle(row_of(key), i);
            if (inside && (same >> i & 1u) != 0) gradient[i] = load_vector<width>(dy + m * columns + column);
        }
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if ((same >> i & 1u) == 0) continue;
            CU_UNROLL
            for (int j = 0; j < width; ++j) total[j] += scale * gradient[i][j];
        }
        place += in_flight;
    } while ((same >> (in_flight - 1) & 1u) != 0);
    if (inside) store_vector<width>(dq + token * columns + column, total);
}

constexpr int places_per_warp = 4;

// A warp looks at places_per_warp places of the sorted list and takes the tokens that begin there, with 32 *
// width columns.
template <int width>
__global__ void __launch_bounds__(warps * 32)
    add_rows_by_token(float* dq, const float* dy, const Key* sorted, const float* row_scale, int64_t rows,
                      int64_t columns) {
    const int64_t first = (int64_t{blockIdx.x} * warps + warp_index()) * places_per_warp;
    // Lane i + 1 has the key of place first + i, and its left neighbour the key before.
    const int64_t place = first + lane_index() - 1;
    const bool looks = lane_index() <= places_per_warp && place >= 0 && place < rows;
    const int64_t token = token_of(looks ? load(sorted + place) : no_key);
    const int64_t token_before = shuffle(token, lane_index() - 1);
    const uint32_t begins = ballot(looks && lane_index() > 0 && token != token_before);
    for (int i = 0; i < places_per_warp; ++i)
        if ((begins >> (i + 1) & 1u) != 0)
            add_rows_of_token<width>(dq, dy, sorted, row_scale, shuffle(token, i + 1), first + i, rows,
                                     columns);
}

}  // namespace

// The table is plain numbers: an embedding is never packed.
void embedding_forward(Device& device, const EmbeddingForward& a) {
    const ComputeWeight& weight = a.weight;
    const int64_t rows = a.tokens.shape[0], columns = weight.columns;
    with_compute_type(a.name, weight.dtype, [&]<typename T>() {
        const T* table = static_cast<const T*>(weight.storage);
        const bool aligned = rows_aligned<4>(columns, a.y.as<float>(), table);
        with_width<4>(aligned, [&]<int width>() {
            const dim3 grid(blocks_for(rows, warps), blocks_for(columns, vectors_per_lane * 32 * width));
            CU_LAUNCH((look_up_rows<T, width>), grid, warps * 32, 0, device.stream(), a.y.as<float>(),
                      a.tokens.as<int32_t>(), table, weight.row_scale().as<float>(), rows, columns);
        });
    });
}

void embedding_backward(Device& device, const EmbeddingBackward& a) {
    const int64_t rows = a.tokens.shape[0], columns = a.dq.shape[1];
    const int64_t padded_rows = (rows + window - 1) / window * window;
    Key* windows =
        static_cast<Key*>(device.scratch((padded_rows + rows) * static_cast<int64_t>(sizeof(Key))));
    Key* sorted = windows + padded_rows;
    CU_LAUNCH(sort_windows, blocks_for(rows, window), window, 0, device.stream(), windows,
              a.tokens.as<int32_t>(), rows);
    CU_LAUNCH(merge_windows, blocks_for(rows, 256), 256, 0, device.stream(), sorted, windows, rows);
    const bool aligned = rows_aligned<4>(columns, a.dq.as<float>(), a.dy.as<float>());
    with_width<4>(aligned, [&]<int width>() {
        const dim3 grid(blocks_for(rows, warps * places_per_warp), blocks_for(columns, 32 * width));
        CU_LAUNCH(add_rows_by_token<width>, grid, warps * 32, 0, device.stream(), a.dq.as<float>(),
                  a.dy.as<float>(), sorted, a.row_scale.as<float>(), rows, columns);
    });
}

}  // namespace train_qat::CU_BACKEND
