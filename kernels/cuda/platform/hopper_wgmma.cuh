// wgmma of hopper.cuh for nvcc: sum (64 x N, float32) (+)= a (64 x 16, bfloat16) b (16 x N, bfloat16) by a warpgroup, the
// four warps from a multiple of 4 on, N = 64, 128, 192 or 256. Warp w has rows 16w ... 16w + 15; with g = lane / 4 and
// t = lane % 4:
//   sum[4j ... 4j + 3]: rows g, g, g+8, g+8; columns 8j + 2t, 2t+1, 2t, 2t+1
//   a[0 ... 3]:         rows g, g+8, g, g+8; k 2t and 2t+1 (0, 1), 2t+8 and 2t+9 (2, 3), the first in the low half
#pragma once

#include "kernels/cuda/platform/hopper_barriers.cuh"

#if defined(__CUDACC__)

#define CU_REGISTERS_32                                                    \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CU_REGISTERS_64                                                                \
    CU_REGISTERS_32                                                                    \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CU_REGISTERS_96                                                                \
    CU_REGISTERS_64                                                                    \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define CU_REGISTERS_128                                                                           \
    CU_REGISTERS_96                                                                                \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define CU_SUMS_4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define CU_SUMS_16(i) CU_SUMS_4(i), CU_SUMS_4(i + 4), CU_SUMS_4(i + 8), CU_SUMS_4(i + 12)
#define CU_SUMS_32 CU_SUMS_16(0), CU_SUMS_16(16)
#define CU_SUMS_64 CU_SUMS_32, CU_SUMS_16(32), CU_SUMS_16(48)
#define CU_SUMS_96 CU_SUMS_64, CU_SUMS_16(64), CU_SUMS_16(80)
#define CU_SUMS_128 CU_SUMS_96, CU_SUMS_16(96), CU_SUMS_16(112)

// Operands count.. are a, b, accumulate, and who is transposed: their numbers.
#define CU_WGMMA(n, count, na, nb, add, a_flag, b_flag)                                                \
    CU_HOPPER_ASM("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add                                        \
                  ", 0;\n"                                                                             \
                  "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" CU_REGISTERS_##count    \
                  "}, %" #na ", %" #nb ", add, 1, 1, %" #a_flag ", %" #b_flag ";\n}"                   \
                  : CU_SUMS_##count                                                                    \
                  : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(a_major)), \
                    "n"(static_cast<int>(b_major)))
#define CU_WGMMA_REGISTERS(n, count, a0, a1, a2, a3, nb, add, b_flag)                                      \
    CU_HOPPER_ASM("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add                                            \
                  ", 0;\n"                                                                                 \
                  "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" CU_REGISTERS_##count        \
                  "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #nb ", add, 1, 1, %" #b_flag ";\n}"     \
                  : CU_SUMS_##count                                                                        \
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), \
                    "n"(static_cast<int>(b_major)))

namespace train_qat::CU_BACKEND {

// How an operand lies in shared memory: consecutive k, or consecutive rows of a and columns of b.
enum class Major : int { k, mn };

// Before the first wgmma, and whenever its registers may have changed: sums, or a.
CU_DEVICE void wgmma_fence() {
    CU_HOPPER_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}
// Closes the group of this warp's products since the last commit.
CU_DEVICE void wgmma_commit() {
    CU_HOPPER_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most `pending` of the newest groups are under way.
template <int pending>
CU_DEVICE void wgmma_wait() {
    CU_HOPPER_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Behind a wgmma_wait: the compiler must not have used these registers for anything else before here.
template <int count>
CU_DEVICE void keep_registers(float (&registers)[count]) {
    CU_UNROLL
    for (int i = 0; i < count; ++i) CU_HOPPER_ASM("" : "+f"(registers[i])::"memory");
}
template <int count>
CU_DEVICE void keep_registers(uint32_t (&registers)[count]) {
    CU_UNROLL
    for (int i = 0; i < count; ++i) CU_HOPPER_ASM("" : "+r"(registers[i])::"memory");
}

// a and b by descriptors (hopper.cuh). accumulate: false replaces the sums.
template <Major a_major = Major::k, Major b_major = Major::k, int count>
CU_DEVICE void wgmma(float (&sum)[count], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(count == 32 || count == 64 || count == 96 || count == 128);
    if constexpr (count == 32)
        CU_WGMMA(64, 32, 32, 33, 34, 35, 36);
    else if constexpr (count == 64)
        CU_WGMMA(128, 64, 64, 65, 66, 67, 68);
    else if constexpr (count == 96)
        CU_WGMMA(192, 96, 96, 97, 98, 99, 100);
    else
        CU_WGMMA(256, 128, 128, 129, 130, 131, 132);
}
// a in registers.
template <Major b_major = Major::k, int count>
CU_DEVICE void wgmma(float (&sum)[count], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(count == 32 || count == 64 || count == 96 || count == 128);
    if constexpr (count == 32)
        CU_WGMMA_REGISTERS(64, 32, 32, 33, 34, 35, 36, 37, 38);
    else if constexpr (count == 64)
        CU_WGMMA_REGISTERS(128, 64, 64, 65, 66, 67, 68, 69, 70);
    else if constexpr (count == 96)
        CU_WGMMA_REGISTERS(192, 96, 96, 97, 98, 99, 100, 101, 102);
    else
        CU_WGMMA_REGISTERS(256, 128, 128, 129, 130, 131, 132, 133, 134);
}

}  // namespace train_qat::CU_BACKEND

#endif
