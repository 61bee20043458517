// Weights as ranks exchange them: rows of packed codes and scales, or of plain numbers. A ComputeWeight that
// holds codes, or plain numbers without a grid, is its own message: ranks then exchange its rows in place.
// Only levels in plain form (for cuBLASLt, and the embedding's) take a detour through a buffer of codes.
#include "kernels/weight_message.h"

#include "kernels/cuda/weights/codes.cuh"
#include "kernels/cuda/weights/weight_update.cuh"
#include "kernels/cuda/weights/weights.h"

namespace train_qat::CU_BACKEND {

namespace {

bool is_its_own_message(const ParameterRows& p) {
    return p.grid == Grid::none || p.compute->codes == p.grid;
}

// The message of a weight in its present form.
WeightMessage own_message(const ParameterRows& p) {
    const WeightLayout layout = layout_of(*p.compute, p.first_row);
    WeightMessage message;
    message.numbers = layout.numbers;
    message.row_bytes = layout.row_bytes;
    if (p.grid == Grid::none) return message;
    message.scales_per_row = p.columns / p.group;
    message.scales = message.scales_per_row == 1 ? layout.row_scale : layout.group_scale;
    return message;
}

}  // namespace

int64_t weight_message_bytes(const ParameterRows& parameter) {
    return parameter.grid == Grid::none ? 0 : buffered_message_bytes(parameter);
}

std::vector<WeightMessage> place_weight_messages(WeightTables& tables,
                                                 std::span<const ParameterRows> parameters, void* buffer) {
    tables.choose_forms(parameters);
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

void write_weight_messages(Device& device, WeightTables& tables, const WriteWeightMessages& arguments) {
    std::vector<ParameterRows> apart;
    std::vector<WeightMessage> places;
    for (size_t i = 0; i < arguments.rows.size(); ++i) {
        if (is_its_own_message(arguments.rows[i])) continue;
        apart.push_back(arguments.rows[i]);
        places.push_back(arguments.messages[i]);
    }
    if (!apart.empty()) quantize(device.stream(), tables.to_messages(apart, places));
}

void read_weight_messages(Device& device, const ReadWeightMessages& arguments) {
    for (size_t i = 0; i < arguments.parameters.size(); ++i) {
        const ParameterRows& p = arguments.parameters[i];
        if (is_its_own_message(p)) continue;
        const WeightMessage& message = arguments.messages[i];
        const Tensor levels(layout_of(*p.compute, p.first_row).numbers, p.compute->dtype,
                            {p.rows, p.columns});
        unpack_codes(device.stream(), levels,
                     {static_cast<const uint8_t*>(message.numbers), message.row_bytes,
                      message.scales_per_row == 1 ? nullptr : message.scales, p.grid, p.group});
    }
}

}  // namespace train_qat::CU_BACKEND
