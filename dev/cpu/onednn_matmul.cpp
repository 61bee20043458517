#include "dev/cpu/onednn_matmul.h"

#include <string>

namespace train_qat {

using Desc = dnnl::memory::desc;

dnnl::memory::data_type OneDnnMatmul::type() const {
    return dtype_ == DType::bfloat16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

Desc OneDnnMatmul::matrix(int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) const {
    return Desc({rows, columns}, type(), dnnl::memory::dims{row_stride, column_stride});
}

void OneDnnMatmul::prepare(void* y, dnnl::memory::data_type y_type, const void* x, const Desc& source,
                           int64_t rows, int64_t inner, int64_t columns, bool accumulate) {
    dnnl::post_ops operations;
    if (accumulate) operations.append_sum(1.0f);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(operations);
    const Desc destination({rows, columns}, y_type, dnnl::memory::dims{columns, 1});
    const Desc any({inner, columns}, type(), dnnl::memory::format_tag::any);
#if DNNL_VERSION_MAJOR < 3
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(source, any, destination), attributes,
                                                   engine_);
#else
    const dnnl::matmul::primitive_desc description(engine_, source, any, destination, attributes);
#endif
    matmul_ = dnnl::matmul(description);
    source_ = dnnl::memory(source, engine_, const_cast<void*>(x));
    weights_ = dnnl::memory(description.weights_desc(), engine_);
    destination_ = dnnl::memory(destination, engine_, y);
    packs_ = false;
}

void OneDnnMatmul::prepare_rows(void* y, const void* x, int64_t rows, int64_t inner, int64_t columns) {
    prepare(y, type(), x, matrix(rows, inner, inner, 1), rows, inner, columns, false);
}

void OneDnnMatmul::prepare_columns(float* y, const void* a, const void* b, int64_t rows, int64_t inner,
                                   int64_t columns) {
    prepare(y, dnnl::memory::data_type::f32, a, matrix(rows, inner, 1, rows), rows, inner, columns, true);
    unpacked_ = dnnl::memory(matrix(inner, columns, columns, 1), engine_, const_cast<void*>(b));
    packing_ = dnnl::reorder(unpacked_, weights_);
    packs_ = true;
}

void OneDnnMatmul::run() {
    if (packs_) packing_.execute(stream_, unpacked_, weights_);
    matmul_.execute(stream_,
                    {{DNNL_ARG_SRC, source_}, {DNNL_ARG_WEIGHTS, weights_}, {DNNL_ARG_DST, destination_}});
    stream_.wait();
}

std::string onednn_version() {
    const dnnl_version_t* const version = dnnl_version();
    return std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
           std::to_string(version->patch);
}

}  // namespace train_qat
