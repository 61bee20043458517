// The sum of a vector, for losses.
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

void CpuBackend::compute(const Sum& args) {
    double result = args.accumulate ? static_cast<double>(*args.total.as<float>()) : 0.0;
    for (int64_t i = 0; i < args.values.shape[0]; ++i) result += args.values.as<float>()[i];
    *args.total.as<float>() = static_cast<float>(result);
}

}  // namespace train_qat
