#include "model/generation/packed_weights.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

#include "kernels/device_memory.h"

namespace train_qat {

namespace {

constexpr const char* purpose = "packed weights";

int64_t rounded_up(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

// A weight of the model and its copy.
struct MatrixCopy {
    const LinearWeight* from;
    PackedMatrix* to;
};
struct VectorCopy {
    const Tensor* from;
    Tensor* to;
};

std::vector<MatrixCopy> matrices_of(const LayerWeights& from, PackedLayer& to) {
    return {{&from.qkv, &to.qkv},
            {&from.attention_output, &to.attention_output},
            {&from.gate_up, &to.gate_up},
            {&from.down, &to.down}};
}

// Those that the model has.
std::vector<VectorCopy> vectors_of(const LayerWeights& from, PackedLayer& to) {
    std::vector<VectorCopy> vectors = {{&from.attention_norm.master, &to.attention_norm},
                                       {&from.ffn_norm.master, &to.ffn_norm},
                                       {&from.qkv_bias.master, &to.qkv_bias},
                                       {&from.query_norm.master, &to.query_norm},
                                       {&from.key_norm.master, &to.key_norm}};
    std::erase_if(vectors, [](const VectorCopy& vector) { return vector.from->empty(); });
    return vectors;
}

// The form of the copy; all parameters that stand in a weight have one grid.
void describe(const MatrixCopy& matrix, const Parameters& parameters) {
    const ComputeWeight& weight = matrix.from->compute;
    PackedMatrix& packed = *matrix.to;
    for (const Parameter& parameter : parameters.all()) {
        if (parameter.whole.compute != &weight) continue;
        packed = {weight.rows, weight.columns, parameter.whole.grid, parameter.whole.group, weight.dtype, {}};
        packed.message.row_bytes = packed_row_bytes(packed.columns, packed.grid, packed.dtype);
        if (packed.grid != Grid::none) packed.message.scales_per_row = packed.columns / packed.group;
        return;
    }
    throw std::logic_error("PackedWeights: a weight without a parameter");
}

// Rows [first_row, first_row + rows) of the matrix become those of the message.
void copy_rows(Backend& backend, const ParameterRows& rows, const WeightMessage& message,
               const PackedMatrix& matrix) {
    const int64_t row_bytes = matrix.message.row_bytes;
    std::vector<char> from(static_cast<size_t>(rows.rows * message.row_bytes));
    std::vector<char> to(static_cast<size_t>(rows.rows * row_bytes), 0);
    backend.copy_to_host(from.data(), message.numbers, std::ssize(from));
    for (int64_t row = 0; row < rows.rows; ++row)
        std::memcpy(&to[row * row_bytes], &from[row * message.row_bytes],
                    static_cast<size_t>(std::min(row_bytes, message.row_bytes)));
    backend.copy_to_device(static_cast<char*>(matrix.message.numbers) + rows.first_row * row_bytes, to.data(),
                           std::ssize(to));
    if (matrix.grid == Grid::none) return;
    std::vector<float> scales(static_cast<size_t>(rows.rows * message.scales_per_row));
    const int64_t bytes = std::ssize(scales) * size_of(DType::float32);
    backend.copy_to_host(scales.data(), message.scales, bytes);
    backend.copy_to_device(matrix.message.scales + rows.first_row * message.scales_per_row, scales.data(),
                           bytes);
}

// Calls use(rows, message) for all matrices. A process that keeps a part of the masters has the messages of all from its last
// exchange; else they are made here, one after another.
template <typename Use>
void with_messages(Backend& backend, const Parameters& parameters, Use&& use) {
    std::vector<ParameterRows> matrices;
    for (const Parameter& parameter : parameters.all())
        if (!parameter.is_vector) matrices.push_back(parameter.whole);
    if (parameters.shard().parts > 1) {
        const std::vector<WeightMessage> messages =
            backend.weight_messages(matrices, parameters.message_buffer());
        for (size_t i = 0; i < matrices.size(); ++i) use(matrices[i], messages[i]);
        return;
    }
    for (const ParameterRows& matrix : matrices) {
        const DeviceMemory buffer(backend, backend.weight_message_bytes(matrix));
        const std::vector<WeightMessage> message = backend.weight_messages({&matrix, 1}, buffer.data());
        backend.write_weight_messages({.rows = {&matrix, 1}, .messages = message});
        use(matrix, message[0]);
    }
}

// Scales stand behind the numbers.
void place(const MatrixCopy& matrix, Arena& arena) {
    PackedMatrix& packed = *matrix.to;
    arena.place_bytes(purpose, packed.message.numbers,
                      rounded_up(packed.number_bytes()) + packed.scale_bytes());
}

void set_scales(PackedMatrix& packed) {
    if (packed.grid != Grid::none)
        packed.message.scales = reinterpret_cast<float*>(static_cast<char*>(packed.message.numbers) +
                                                         rounded_up(packed.number_bytes()));
}

void copy_vector(Backend& backend, const VectorCopy& vector) {
    std::vector<char> values(static_cast<size_t>(vector.to->bytes()));
    backend.copy_to_host(values.data(), vector.from->data, vector.to->bytes());
    backend.copy_to_device(vector.to->data, values.data(), vector.to->bytes());
}

}  // namespace

PackedWeights::PackedWeights(Backend& backend, const ModelConfig& config, const Parameters& parameters)
    : tied_(config.tied), layers_(static_cast<size_t>(config.layers)) {
    std::vector<MatrixCopy> matrices = {{&parameters.embedding, &embedding_}};
    if (!tied_) matrices.push_back({&parameters.untied_head, &untied_head_});
    std::vector<VectorCopy> vectors = {{&parameters.final_norm.master, &final_norm_}};
    for (size_t l = 0; l < layers_.size(); ++l) {
        for (const MatrixCopy& matrix : matrices_of(parameters.layers[l], layers_[l]))
            matrices.push_back(matrix);
        for (const VectorCopy& vector : vectors_of(parameters.layers[l], layers_[l]))
            vectors.push_back(vector);
    }
    for (const MatrixCopy& matrix : matrices) {
        describe(matrix, parameters);
        place(matrix, arena_);
    }
    for (const VectorCopy& vector : vectors)
        arena_.place(purpose, *vector.to, DType::float32, {vector.from->elements()});
    arena_.allocate(backend);

    std::map<const ComputeWeight*, PackedMatrix*> packed;
    for (const MatrixCopy& matrix : matrices) {
        set_scales(*matrix.to);
        packed[&matrix.from->compute] = matrix.to;
    }
    with_messages(backend, parameters, [&](const ParameterRows& rows, const WeightMessage& message) {
        copy_rows(backend, rows, message, *packed.at(rows.compute));
    });
    for (const VectorCopy& vector : vectors) copy_vector(backend, vector);
}

int64_t PackedWeights::bytes_per_token() const {
    int64_t bytes = 0;
    const auto add = [&bytes](const PackedMatrix& matrix) {
        bytes += matrix.number_bytes() + matrix.scale_bytes();
    };
    for (const PackedLayer& layer : layers_)
        for (const PackedMatrix* matrix : {&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down})
            add(*matrix);
    add(output_head());
    return bytes;
}

}  // namespace train_qat
