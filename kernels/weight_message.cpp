#include "kernels/weight_message.h"

#include "kernels/codes.h"

namespace train_qat {

namespace {

int64_t rounded_up(int64_t bytes) {
    constexpr int64_t alignment = 256;
    return (bytes + alignment - 1) / alignment * alignment;
}

// Of a row of codes or, without a grid, of numbers in the compute type.
int64_t message_row_bytes(const ParameterRows& p) {
    return p.grid == Grid::none ? p.columns * size_of(p.compute->dtype)
                                : code_row_bytes(p.columns, code_bits(p.grid));
}

}  // namespace

int64_t buffered_message_bytes(const ParameterRows& p) {
    const int64_t scales = p.grid == Grid::none || p.group == p.columns ? 0 : p.scales();
    return rounded_up(p.rows * message_row_bytes(p)) +
           rounded_up(scales * static_cast<int64_t>(sizeof(float)));
}

WeightMessage buffered_message(const ParameterRows& p, void* place) {
    WeightMessage message;
    message.numbers = place;
    message.row_bytes = message_row_bytes(p);
    if (p.grid == Grid::none) return message;
    message.scales_per_row = p.columns / p.group;
    message.scales = message.scales_per_row == 1
                         ? p.compute->scale_storage + p.first_row
                         : reinterpret_cast<float*>(static_cast<unsigned char*>(place) +
                                                    rounded_up(p.rows * message.row_bytes));
    return message;
}

}  // namespace train_qat
