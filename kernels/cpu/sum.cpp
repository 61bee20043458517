// The sum of a vector, for losses.
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

void CpuBackend::sum(const Tensor& total, const Tensor& values, bool accumulate) {
    check_tensor("sum", "total", total, DType::float32, {1});
    check_tensor("sum", "values", values, DType::float32, {values.shape[0]});
    double result = accumulate ? static_cast<double>(*total.as<float>()) : 0.0;
    for (int64_t i = 0; i < values.shape[0]; ++i) result += values.as<float>()[i];
    *total.as<float>() = static_cast<float>(result);
}

}  // namespace train_qat
