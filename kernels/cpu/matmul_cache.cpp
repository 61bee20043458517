#include "kernels/cpu/matmul_cache.h"

#include <omp.h>

#include <cstring>
#include <stdexcept>

#include "kernels/cpu/tile.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace train_qat {

namespace {

using Desc = dnnl::memory::desc;
using Tag = dnnl::memory::format_tag;

dnnl::memory::data_type onednn_type(DType dtype) {
    return dtype == DType::bfloat16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

template <typename Line>
void enlarge(std::vector<Line>& staging, int64_t bytes) {
    const auto lines =
        static_cast<size_t>(round_up(bytes, sizeof(Line)) / static_cast<int64_t>(sizeof(Line)));
    if (lines > staging.size()) staging.resize(lines);
}

Desc strided(DType dtype, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
    return Desc({rows, columns}, onednn_type(dtype), dnnl::memory::dims{row_stride, column_stride});
}

}  // namespace

bool cpu_has_amx_bfloat16() {
#if defined(__x86_64__)
    // Not __builtin_cpu_supports: GCC 12 does not know AMX. Leaf 7, EDX: bit 22 says AMX-BF16.
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 22 & 1) != 0;
#else
    return false;
#endif
}

int64_t padded_inner(bool amx, DType dtype, int64_t inner) {
    return amx && dtype == DType::bfloat16 ? round_up(inner, 32) : inner;
}

MatmulCache::MatmulCache(int threads, bool amx)
    : threads_(threads), amx_(amx), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

// oneDNN asks OpenMP for the number of threads, at creation and at execution; another backend of this process
// may have asked for a different one since.
void MatmulCache::use_threads() {
    omp_set_num_threads(threads_);
}

bool MatmulCache::supports(DType dtype) const {
    const Desc matrix = strided(dtype, 64, 64, 64, 1);
    dnnl_primitive_desc_t description = nullptr;
    const dnnl::matmul::desc operation(matrix, matrix, matrix);
    if (dnnl_primitive_desc_create(&description, &operation.data, nullptr, engine_.get(), nullptr) !=
        dnnl_success)
        return false;
    dnnl_primitive_desc_destroy(description);
    return true;
}

const Desc& MatmulCache::packed_layout(DType dtype, int64_t inner, int64_t columns) {
    inner = padded_inner(amx_, dtype, inner);
    const auto key = std::make_tuple(dtype, inner, columns);
    auto found = layouts_.find(key);
    if (found == layouts_.end()) {
        // Asked with many rows on the left; every other number of rows then uses the same layout.
        constexpr int64_t many_rows = 1024;
        const Desc any({inner, columns}, onednn_type(dtype), Tag::any);
        const dnnl::matmul::primitive_desc description(
            dnnl::matmul::desc(strided(dtype, many_rows, inner, inner, 1), any,
                               strided(dtype, many_rows, columns, columns, 1)),
            engine_);
        found = layouts_.emplace(key, description.weights_desc()).first;
    }
    return found->second;
}

const MatmulCache::PackedOffsets& MatmulCache::packed_offsets(DType dtype, int64_t inner, int64_t columns) {
    const auto key = std::make_tuple(dtype, inner, columns);
    auto found = offsets_.find(key);
    if (found != offsets_.end()) return found->second;

    const dnnl_memory_desc_t& layout = packed_layout(dtype, inner, columns).data;
    if (layout.format_kind != dnnl_blocked || layout.offset0 != 0)
        throw std::logic_error("matmul: oneDNN chose a weight layout that is not blocked");
    const dnnl_blocking_desc_t& blocking = layout.format_desc.blocking;
    PackedOffsets offsets;
    for (int dimension = 0; dimension < 2; ++dimension) {
        std::vector<int64_t>& table = dimension == 0 ? offsets.inner : offsets.columns;
        table.resize(static_cast<size_t>(layout.padded_dims[dimension]));
        for (size_t index = 0; index < table.size(); ++index) {
            int64_t rest = static_cast<int64_t>(index), inside_block = 1, offset = 0;
            // Inner blocks from the fastest outwards; those of the other dimension only widen the stride.
            for (int block = blocking.inner_nblks - 1; block >= 0; --block) {
                if (blocking.inner_idxs[block] == dimension) {
                    offset += rest % blocking.inner_blks[block] * inside_block;
                    rest /= blocking.inner_blks[block];
                }
                inside_block *= blocking.inner_blks[block];
            }
            table[index] = offset + rest * blocking.strides[dimension];
        }
    }
    return offsets_.emplace(key, std::move(offsets)).first->second;
}

MatmulCache::Matmul MatmulCache::make_matmul(const Desc& source, const Desc& weights, const Desc& destination,
                                             bool accumulate) {
    dnnl::post_ops post_operations;
    if (accumulate) post_operations.append_sum(1.0f);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(post_operations);
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(source, weights, destination),
                                                   attributes, engine_);
    Matmul matmul{dnnl::matmul(description),
                  dnnl::memory(source, engine_, nullptr),
                  dnnl::memory(weights, engine_, nullptr),
                  dnnl::memory(destination, engine_, nullptr),
                  {}};
    // A dnnl::memory is a shared handle: the map sees the pointers that run() sets later.
    matmul.arguments = {{DNNL_ARG_SRC, matmul.source},
                        {DNNL_ARG_WEIGHTS, matmul.weights},
                        {DNNL_ARG_DST, matmul.destination}};
    return matmul;
}

void MatmulCache::run(Matmul& matmul, void* y, const void* x, const void* weights) {
    matmul.source.set_data_handle(const_cast<void*>(x));
    matmul.weights.set_data_handle(const_cast<void*>(weights));
    matmul.destination.set_data_handle(y);
    matmul.primitive.execute(stream_, matmul.arguments);
    stream_.wait();
}

MatmulCache::Matmul& MatmulCache::find_matmul(Form form, DType dtype, DType y_dtype, int64_t rows,
                                              int64_t inner, int64_t columns) {
    use_threads();
    const auto key = std::make_tuple(form, dtype, y_dtype, rows, inner, columns);
    auto found = matmuls_.find(key);
    if (found == matmuls_.end()) {
        const Desc source = form == Form::plain ? strided(dtype, rows, inner, inner, 1)
                                                : strided(dtype, rows, inner, 1, rows);
        found = matmuls_
                    .emplace(key, make_matmul(source, packed_layout(dtype, inner, columns),
                                              strided(y_dtype, rows, columns, columns, 1),
                                              form == Form::transposed_accumulating))
                    .first;
    }
    return found->second;
}

void MatmulCache::multiply_packed(void* y, DType y_dtype, const void* x, const void* packed, DType dtype,
                                  int64_t rows, int64_t inner, int64_t columns) {
    const int64_t padded = padded_inner(amx_, dtype, inner);
    Matmul& matmul = find_matmul(Form::plain, dtype, y_dtype, rows, padded, columns);
    run(matmul, y, padded_copy(padded_left_, x, size_of(dtype), rows, inner, rows, padded), packed);
}

const void* MatmulCache::padded_copy(Staging& staging, const void* source, int64_t element, int64_t rows,
                                     int64_t columns, int64_t padded_rows, int64_t padded_columns) {
    if (rows == padded_rows && columns == padded_columns) return source;
    const int64_t row_bytes = columns * element, padded_row_bytes = padded_columns * element;
    enlarge(staging, padded_rows * padded_row_bytes);
    char* const copy = reinterpret_cast<char*>(staging.data());
#pragma omp parallel for num_threads(threads_)
    for (int64_t row = 0; row < padded_rows; ++row) {
        const int64_t kept = row < rows ? row_bytes : 0;
        char* const to = copy + row * padded_row_bytes;
        std::memcpy(to, static_cast<const char*>(source) + row * kept, static_cast<size_t>(kept));
        std::memset(to + kept, 0, static_cast<size_t>(padded_row_bytes - kept));
    }
    return copy;
}

// b (inner, columns), as it is in memory, in the layout of packed_layout.
const void* MatmulCache::packed_copy(const void* source, DType dtype, int64_t inner, int64_t columns) {
    const Desc& layout = packed_layout(dtype, inner, columns);
    enlarge(packed_right_, static_cast<int64_t>(layout.get_size()));
    const auto key = std::make_tuple(dtype, inner, columns);
    auto found = packings_.find(key);
    if (found == packings_.end()) {
        dnnl::memory from(strided(dtype, inner, columns, columns, 1), engine_, nullptr);
        dnnl::memory to(layout, engine_, nullptr);
        found = packings_.emplace(key, Packing{dnnl::reorder(from, to), from, to}).first;
    }
    Packing& packing = found->second;
    packing.source.set_data_handle(const_cast<void*>(source));
    packing.destination.set_data_handle(packed_right_.data());
    packing.primitive.execute(stream_, packing.source, packing.destination);
    stream_.wait();
    return packed_right_.data();
}

void MatmulCache::multiply_transposed(float* y, const void* a, const void* b, DType dtype, int64_t rows,
                                      int64_t inner, int64_t columns, bool accumulate) {
    const Form form = accumulate ? Form::transposed_accumulating : Form::transposed;
    const int64_t padded = padded_inner(amx_, dtype, inner), element = size_of(dtype);
    Matmul& matmul = find_matmul(form, dtype, DType::float32, rows, padded, columns);
    a = padded_copy(padded_left_, a, element, inner, rows, padded, rows);
    b = padded_copy(padded_right_, b, element, inner, columns, padded, columns);
    run(matmul, y, a, packed_copy(b, dtype, padded, columns));
}

}  // namespace train_qat
