// Rows of a packed matrix as numbers: y[m,:] = s[token] * level[token,:].
//
// Floor: the tokens' codes read, y written. A thread has a word of codes.
#include "kernels/codes.h"
#include "kernels/cuda/generation/generation.h"
#include "kernels/cuda/generation/packed_words.cuh"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 128;

// Block (i, m): words threads * i ... of row m.
template <int bits>
__global__ void __launch_bounds__(threads)
    unpack_rows(float* y, const int32_t* tokens, const uint8_t* weights, int64_t row_bytes,
                const float* scales, int64_t group, float step, float lowest, int64_t columns) {
    constexpr int in_word = 32 / bits;
    const int64_t m = blockIdx.y, token = load(tokens + m);
    const int64_t index = int64_t{blockIdx.x} * threads + threadIdx.x, first = index * in_word;
    if (first >= columns) return;
    const uint32_t word = load(reinterpret_cast<const uint32_t*>(weights + token * row_bytes) + index);
    CU_UNROLL
    for (int i = 0; i < in_word; ++i) {
        const int64_t column = first + i;
        if (column >= columns) return;
        const float scale =
            scales != nullptr ? load(scales + token * (columns / group) + column / group) : 1.0f;
        store(y + m * columns + column, scale * (lowest + step * number_of_word<bits>(word, i)));
    }
}

}  // namespace

void packed_embedding_forward(Device& device, const PackedEmbeddingForward& a) {
    const PackedMatrix& weight = a.weight;
    const bool coded = weight.grid != Grid::none;
    const int bits = coded ? code_bits(weight.grid) : static_cast<int>(8 * size_of(weight.dtype));
    with_bits(bits, [&]<int width>() {
        const dim3 blocks(blocks_for(weight.columns * width, int64_t{32} * threads),
                          static_cast<unsigned>(a.tokens.shape[0]));
        CU_LAUNCH(unpack_rows<width>, blocks, threads, 0, device.stream(), a.y.as<float>(),
                  a.tokens.as<int32_t>(), static_cast<const uint8_t*>(weight.message.numbers),
                  weight.message.row_bytes, coded ? weight.message.scales : nullptr,
                  coded ? weight.group : weight.columns, coded ? level_step(weight.grid) : 1.0f,
                  lowest_level(weight.grid), weight.columns);
    });
}

}  // namespace train_qat::CU_BACKEND
