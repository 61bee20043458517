// Sums over all rows of an activation, for gradients of weights and biases: a kernel that reads the rows anyway leaves the
// sums of tiles of rows in a workspace, which are then summed in fixed order. The tile's size follows from M alone, so the
// result is the same on all devices.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/device.h"

namespace train_qat::CU_BACKEND {

// Rows of a tile: enough to make its sums small beside the rows, more where there would be too many tiles to sum.
int64_t summed_rows(int64_t rows);

// Bytes for the sums of all tiles, (tiles, columns) float32; enough for fewer rows too, of which there may be more tiles.
int64_t partial_sum_bytes(int64_t rows, int64_t columns);

// result (columns) (+)= the sum of partials (tiles, columns).
void sum_partials(Device& device, float* result, const float* partials, int64_t tiles, int64_t columns,
                  bool accumulate);

}  // namespace train_qat::CU_BACKEND
