// How many bytes a quantized model takes when its weights are packed, and sizes in bytes as people write them.
#pragma once

#include <cstdint>
#include <string>

#include "model/config.h"

namespace train_qat {

// Of the shape alone, without a file's header or the blocks of any format:
//   ( B * block linears + max(B, 4) * embedding and head + 16 * scales + 32 * vectors ) / 8, rounded up,
// where vectors counts the weights of norms and biases, and scales one for each output row of a matrix, those of
// embedding and head among them, or for each `group` weights of a row. 1.58 bits count as 1.58. 16 bits: 16 bits a weight of
// every matrix, and no scales. std::runtime_error naming -b for other bits, std::logic_error for a group that does not
// divide all rows (see fits_group).
int64_t packed_model_bytes(const ModelConfig& config, double bits, int64_t group);

// Whether groups of this many weights divide the rows of every matrix; 0, a whole row, does.
bool fits_group(const ModelConfig& config, int64_t group);

// "500MB", "1.5GB", "200KB", "123456": decimal units (10^3 to 10^12), in either case. std::runtime_error naming the flag.
int64_t parse_bytes(const std::string& text, const std::string& flag);

}  // namespace train_qat
