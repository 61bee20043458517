// What the rest of the program sees of one level of the CPU backend (levels/levels.h): this function, whose name the build
// gives.
#include "kernels/cpu/cpu_backend.h"

extern "C" train_qat::Backend* TRAIN_QAT_CPU_FACTORY(int threads, train_qat::MatmulUnit unit);

extern "C" train_qat::Backend* TRAIN_QAT_CPU_FACTORY(int threads, train_qat::MatmulUnit unit) {
    return new train_qat::CpuBackend(threads, unit);
}
