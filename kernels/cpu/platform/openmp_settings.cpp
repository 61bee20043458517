#include "kernels/cpu/platform/openmp_settings.h"

#include <unistd.h>

#include <cstdlib>

namespace train_qat {

void limit_openmp_spinning(char** arguments) {
    if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
    setenv("GOMP_SPINCOUNT", "20000", 0);
    execv("/proc/self/exe", arguments);
    // Without /proc the program goes on as it was started.
}

}  // namespace train_qat
