// Matmuls of few rows with packed weights. With codes, x first becomes whole numbers (fixed_point.h), once; plain weights
// are multiplied as they are. Threads divide the outputs.
#include "kernels/codes.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/generation/code_products.h"
#include "kernels/cpu/platform/worker_pool.h"
#include "kernels/cpu/products/elements.h"

namespace train_qat {

namespace {

// Bytes of weights that are worth another thread: one needs about a microsecond to begin.
constexpr int64_t bytes_per_block = 32768;

// Outputs of a block, a multiple of the four that kernels take together.
int64_t outputs_per_block(const PackedMatrix& weight, int64_t rows) {
    const int64_t outputs =
        bytes_per_block / std::max<int64_t>(1, weight.message.row_bytes * std::min<int64_t>(rows, 8));
    return std::max<int64_t>(4, outputs / 4 * 4);
}

inline FloatVector load_weights(const float* source) {
    return load_vector(source);
}

inline FloatVector load_weights(const bfloat16* source) {
    typedef uint16_t Halves __attribute__((vector_size(2 * vector_lanes)));
    typedef uint32_t Words __attribute__((vector_size(4 * vector_lanes)));
    Halves halves;
    std::memcpy(&halves, source, sizeof halves);
    return reinterpret_cast<FloatVector>(__builtin_convertvector(halves, Words) << 16);
}

// Four chains of sums hide the latency of an addition.
template <typename T>
float product_of(const float* x, const T* weights, int64_t count) {
    constexpr int64_t chains = 4;
    FloatVector sums[chains] = {};
    int64_t k = 0;
    for (; k + chains * vector_lanes <= count; k += chains * vector_lanes)
        for (int64_t i = 0; i < chains; ++i)
            sums[i] += load_vector(x + k + i * vector_lanes) * load_weights(weights + k + i * vector_lanes);
    for (; k + vector_lanes <= count; k += vector_lanes)
        sums[0] += load_vector(x + k) * load_weights(weights + k);
    const FloatVector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float total = 0;
    for (int64_t i = 0; i < vector_lanes; ++i) total += sum[i];
    for (; k < count; ++k) total += x[k] * static_cast<float>(weights[k]);
    return total;
}

template <typename T>
void plain_products(const PackedMatmulForward& args, int64_t first, int64_t last) {
    const PackedMatrix& weight = args.weight;
    const int64_t rows = args.x.shape[0], columns = weight.columns;
    for (int64_t n = first; n < last; ++n) {
        const auto* const row = reinterpret_cast<const T*>(static_cast<const char*>(weight.message.numbers) +
                                                           n * weight.message.row_bytes);
        for (int64_t m = 0; m < rows; ++m)
            args.y.as<float>()[m * weight.rows + n] =
                product_of(args.x.as<float>() + m * columns, row, columns);
    }
}

}  // namespace

void CpuBackend::compute(const PackedMatmulForward& args) {
    const PackedMatrix& weight = args.weight;
    const int64_t rows = args.x.shape[0], block = outputs_per_block(weight, rows);
    // product(first, last) for all outputs.
    const auto divide = [&](auto&& product) {
        workers().run((weight.rows + block - 1) / block,
                      [&](int64_t i) { product(i * block, std::min(weight.rows, (i + 1) * block)); });
    };
    if (weight.grid == Grid::none) {
        with_compute_type(args.name, weight.dtype, [&]<typename T>() {
            divide([&](int64_t first, int64_t last) { plain_products<T>(args, first, last); });
        });
        return;
    }
    const int bits = code_bits(weight.grid);
    FixedPointRows x = fixed_point_rows(rows, weight.columns, weight.group, 8 / bits);
    x = placed_in(thread_scratch((fixed_point_bytes(x) + 3) / 4), x);
    for (int64_t m = 0; m < rows; ++m) make_fixed_point(x, m, args.x.as<float>() + m * weight.columns);
    CodeProductFunction product = vnni_code_product(bits, weight.columns, weight.group);
    if (product == nullptr) product = portable_code_product(bits);
    const CodeProduct arguments{&weight, x, args.y.as<float>()};
    divide([&](int64_t first, int64_t last) { product(arguments, first, last); });
}

}  // namespace train_qat
