// What multiplies matrices of bfloat16.
#pragma once

namespace train_qat {

// Vector registers, or the matrix tiles of AMX (matrix_tiles.h).
enum class MatmulUnit { vectors, tiles, emulated_tiles };

}  // namespace train_qat
