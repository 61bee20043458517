// Messages of weights that stand in a buffer of their own (see WeightMessage in kernels/weights.h): the
// layout that all backends share, [numbers | scales of groups], each rounded up to 256 bytes. Scales of whole
// rows stand in the ComputeWeight.
#pragma once

#include <cstdint>

#include "kernels/weights.h"

namespace train_qat {

// Bytes of the message of a whole parameter in a buffer.
int64_t buffered_message_bytes(const ParameterRows& parameter);

// The message of a whole parameter that begins at `place`, which is 256-byte aligned.
WeightMessage buffered_message(const ParameterRows& parameter, void* place);

}  // namespace train_qat
