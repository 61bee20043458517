// Weights as ranks exchange them: rows of packed codes and scales, or of plain numbers. A ComputeWeight that
// holds codes, or plain numbers without a grid, is its own message: ranks then exchange its rows in place.
// Only levels in plain form (for cuBLASLt, and the embedding's) take a detour through a buffer of codes.
#include "kernels/codes.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/weights/codes.cuh"
#include "kernels/cuda/weights/weight_update.cuh"
#include "kernels/weight_message.h"

namespace train_qat::CU_BACKEND {

namespace {

bool is_its_own_message(const ParameterRows& p) {
    return p.grid == Grid::none || p.compute->codes == p.grid;
}

unsigned char* storage_of(const ParameterRows& p) {
    return static_cast<unsigned char*>(p.compute->storage);
}

// The message of a weight in its present form.
WeightMessage own_message(const ParameterRows& p) {
    const ComputeWeight& weight = *p.compute;
    WeightMessage message;
    message.row_bytes = message_row_bytes(p);
    message.numbers = storage_of(p) + p.first_row * message.row_bytes;
    if (p.grid == Grid::none) return message;
    message.scales_per_row = p.columns / p.group;
    float* const of_groups =
        reinterpret_cast<float*>(storage_of(p) + code_scales_offset(weight.rows, weight.columns, p.grid));
    message.scales = (message.scales_per_row == 1 ? weight.scale_storage : of_groups) +
                     p.first_row * message.scales_per_row;
    return message;
}

}  // namespace

int64_t CudaBackend::weight_message_bytes(const ParameterRows& parameter) const {
    return parameter.grid == Grid::none ? 0 : buffered_message_bytes(parameter);
}

std::vector<WeightMessage> CudaBackend::weight_messages(std::span<const ParameterRows> parameters,
                                                        void* buffer) {
    for (const ParameterRows& p : parameters) check_compute_rows("weight_messages", p);
    updates_->choose_forms(parameters);
    std::vector<WeightMessage> messages;
    auto* place = static_cast<unsigned char*>(buffer);
    for (const ParameterRows& p : parameters) {
        if (is_its_own_message(p)) {
            messages.push_back(own_message(p));
            continue;
        }
        messages.push_back(buffered_message(p, place));
        place += buffered_message_bytes(p);
    }
    return messages;
}

void CudaBackend::write_weight_messages(std::span<const ParameterRows> rows,
                                        std::span<const WeightMessage> messages) {
    if (rows.size() != messages.size())
        throw std::logic_error("write_weight_messages: needs a message for each parameter");
    std::vector<ParameterRows> apart;
    std::vector<WeightMessage> places;
    for (size_t i = 0; i < rows.size(); ++i) {
        check_parameter("write_weight_messages", rows[i]);
        check_compute_rows("write_weight_messages", rows[i]);
        if (is_its_own_message(rows[i])) continue;
        apart.push_back(rows[i]);
        places.push_back(messages[i]);
    }
    if (!apart.empty()) quantize(updates_->to_messages(apart, places));
}

void CudaBackend::read_weight_messages(std::span<const ParameterRows> parameters,
                                       std::span<const WeightMessage> messages) {
    if (parameters.size() != messages.size())
        throw std::logic_error("read_weight_messages: needs a message for each parameter");
    for (size_t i = 0; i < parameters.size(); ++i) {
        const ParameterRows& p = parameters[i];
        check_compute_rows("read_weight_messages", p);
        if (is_its_own_message(p)) continue;
        const WeightMessage& message = messages[i];
        const DType dtype = p.compute->dtype;
        const Tensor levels(storage_of(p) + p.first_row * p.columns * size_of(dtype), dtype,
                            {p.rows, p.columns});
        unpack_codes(stream(), levels,
                     {static_cast<const uint8_t*>(message.numbers), message.row_bytes,
                      message.scales_per_row == 1 ? nullptr : message.scales, p.grid, p.group});
    }
}

}  // namespace train_qat::CU_BACKEND
