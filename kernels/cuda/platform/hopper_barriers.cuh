// Barriers and register counts of hopper.cuh for nvcc.
#pragma once

#include "kernels/cuda/platform/portable.cuh"

#if defined(__CUDACC__)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CU_HOPPER_TARGET 1
#define CU_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define CU_HOPPER_TARGET 0
#define CU_HOPPER_ASM(...) static_cast<void>(0)
#endif
#define CU_GRID_CONSTANT __grid_constant__

namespace train_qat::CU_BACKEND {

constexpr bool hopper_target = CU_HOPPER_TARGET == 1;

CU_DEVICE uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// ---- barriers in shared memory

// A phase ends when all arrivals have come and all announced bytes have landed; then the next begins.
struct alignas(8) Barrier {
    uint64_t state;
};

// By one thread; fence_barrier_init(), fence_async_proxy() and a block_sync() before anybody else uses it.
CU_DEVICE void barrier_init(Barrier* barrier, int arrivals) {
    CU_HOPPER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
                  : "memory");
}
CU_DEVICE void fence_barrier_init() {
    CU_HOPPER_ASM("fence.mbarrier_init.release.cluster;" ::: "memory");
}
CU_DEVICE void barrier_arrive(Barrier* barrier) {
    CU_HOPPER_ASM("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                  : "memory");
}
// Arrives, and announces that copies bring so many bytes in this phase; a box counts as a whole wherever it lies.
CU_DEVICE void barrier_arrive_expect(Barrier* barrier, int bytes) {
    CU_HOPPER_ASM(
        "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}
// Waits until the phase with this parity (0 for the first) has ended.
CU_DEVICE void barrier_wait(Barrier* barrier, uint32_t parity) {
    uint32_t done = 1;
    do {
        CU_HOPPER_ASM(
            "{\n.reg .pred done;\n"
            "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%1], %2;\n"
            "selp.u32 %0, 1, 0, done;\n}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (done == 0);
}

// ---- named barriers: `threads` threads, whole warps, meet at barrier `id` (1 ... 15)

CU_DEVICE void group_sync(int id, int threads) {
    CU_HOPPER_ASM("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Does not wait for the others.
CU_DEVICE void group_arrive(int id, int threads) {
    CU_HOPPER_ASM("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- registers of each thread of the warpgroup, a multiple of 8, 24 ... 240

template <int count>
CU_DEVICE void grow_registers() {
    CU_HOPPER_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
CU_DEVICE void shrink_registers() {
    CU_HOPPER_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

}  // namespace train_qat::CU_BACKEND

#endif
