// Numbers as files have them, widened to float32.
#pragma once

#include <cstdint>
#include <string>

namespace train_qat {

// An IEEE binary16 number, exactly; an infinite number and a NaN stay such. Integers alone touch what is below the
// smallest normal number: threads that flush denormal numbers to zero read the same.
float widen_float16(uint16_t bits);

// Whether widen() reads numbers of this safetensors dtype: F32, BF16, F16.
bool is_readable(const std::string& dtype);

// `count` numbers, one behind the other in `source`.
void widen(const std::string& dtype, const char* source, int64_t count, float* values);

}  // namespace train_qat
