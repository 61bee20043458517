// Whether this process may use matrix tiles.
#include "kernels/cpu/platform/matrix_tiles.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace train_qat {

bool cpu_has_matrix_tiles() {
#if defined(__x86_64__)
    // Not __builtin_cpu_supports: GCC 12 does not know AMX. Leaf 7, EDX: bits 22 and 24 say AMX-BF16 and AMX-TILE.
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned both = 1u << 22 | 1u << 24;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & both) == both;
#else
    return false;
#endif
}

bool may_use_matrix_tiles() {
#if defined(__x86_64__) && defined(__linux__)
    // The registers are 8 KiB, so Linux saves them only for processes that ask (its Documentation/arch/x86/xstate).
    static const bool permitted = [] {
        constexpr long request_permission = 0x1023, tile_data = 18;
        return cpu_has_matrix_tiles() && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return permitted;
#else
    return false;
#endif
}

}  // namespace train_qat
