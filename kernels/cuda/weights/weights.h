// Operations on weights, once per optimizer step, and the messages of weights among ranks: kernels/operations.h says
// what each computes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/platform/device.h"
#include "kernels/cuda/weights/weight_layout.h"
#include "kernels/cuda/weights/weight_tables.h"
#include "kernels/operations.h"

namespace train_qat::CU_BACKEND {

void initialize_scales(Device& device, WeightTables& tables, const InitializeScales& arguments);
void quantize(Device& device, WeightTables& tables, const Quantize& arguments);
void ste_backward_and_norm(Device& device, WeightTables& tables, const SteBackwardAndNorm& arguments);
void adamw_and_quantize(Device& device, WeightTables& tables, const AdamwAndQuantize& arguments);

void write_weight_messages(Device& device, WeightTables& tables, const WriteWeightMessages& arguments);
void read_weight_messages(Device& device, const ReadWeightMessages& arguments);

// Backend::weight_message_bytes and Backend::weight_messages.
int64_t weight_message_bytes(const ParameterRows& parameter);
std::vector<WeightMessage> place_weight_messages(WeightTables& tables,
                                                 std::span<const ParameterRows> parameters, void* buffer);

}  // namespace train_qat::CU_BACKEND
