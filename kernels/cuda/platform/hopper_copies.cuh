// Bulk copies and stmatrix of hopper.cuh for nvcc. Coordinates and boxes: innermost dimension first.
#pragma once

#include "kernels/cuda/platform/hopper_barriers.cuh"

#if defined(__CUDACC__)

#include <cuda.h>

namespace train_qat::CU_BACKEND {

using TensorMap = CUtensorMap;

// What this thread has written to shared memory may be read by wgmma and tensor stores behind the next barrier.
CU_DEVICE void fence_async_proxy() {
    CU_HOPPER_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

CU_DEVICE void prefetch_tensor_map(const TensorMap* map) {
    CU_HOPPER_ASM("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// ---- loads, by one thread: bytes land at `barrier`

// The map's box whose first element is (x, y). Outside of the tensor are zeros.
CU_DEVICE void tensor_load(void* shared, const TensorMap* map, int x, int y, Barrier* barrier) {
    CU_HOPPER_ASM(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
        "%4}], [%2];" ::"r"(shared_address(shared)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
        : "memory");
}
CU_DEVICE void tensor_load(void* shared, const TensorMap* map, int x, int y, int z, Barrier* barrier) {
    CU_HOPPER_ASM(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
        "%4, %5}], [%2];" ::"r"(shared_address(shared)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
// Consecutive bytes; both addresses and the number are multiples of 16.
CU_DEVICE void bulk_load(void* shared, const void* global, int bytes, Barrier* barrier) {
    CU_HOPPER_ASM(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}

// ---- stores, by one thread: what lies inside of the tensor. tensor_add: adds float32 numbers, in no order.

CU_DEVICE void tensor_store(const TensorMap* map, int x, int y, const void* shared) {
    CU_HOPPER_ASM(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
        "r"(shared_address(shared)), "r"(x), "r"(y)
        : "memory");
}
CU_DEVICE void tensor_store(const TensorMap* map, int x, int y, int z, const void* shared) {
    CU_HOPPER_ASM(
        "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
        "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
CU_DEVICE void tensor_add(const TensorMap* map, int x, int y, const void* shared) {
    CU_HOPPER_ASM(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
            map),
        "r"(shared_address(shared)), "r"(x), "r"(y)
        : "memory");
}
CU_DEVICE void tensor_add(const TensorMap* map, int x, int y, int z, const void* shared) {
    CU_HOPPER_ASM(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::
            "l"(map),
        "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
// Closes the group of this thread's stores since the last commit; an empty group counts too.
CU_DEVICE void bulk_commit() {
    CU_HOPPER_ASM("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until all but the `pending` newest groups have been read, so that their shared memory may change: before the
// thread returns, of all groups.
template <int pending>
CU_DEVICE void bulk_wait_read() {
    CU_HOPPER_ASM("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
// ... have been written too.
template <int pending>
CU_DEVICE void bulk_wait() {
    CU_HOPPER_ASM("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- four 8x8 matrices of 16-bit elements to shared memory: what ldmatrix_x4 and ldmatrix_x4_trans read back

CU_DEVICE void stmatrix_x4(void* row, const uint32_t (&registers)[4]) {
    CU_HOPPER_ASM(
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
        "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
        : "memory");
}
CU_DEVICE void stmatrix_x4_trans(void* row, const uint32_t (&registers)[4]) {
    CU_HOPPER_ASM(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
        "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
        : "memory");
}

}  // namespace train_qat::CU_BACKEND

#endif
