// The CUDA that our kernels are written in. Every .cu file includes this header and nothing else of CUDA, and
// compiles in two ways:
//   * nvcc: everything below is a thin wrapper around the hardware's own instruction;
//   * g++:  <cuda_emulator.h> gives the same names, and the kernels run on the CPU, checked. Like CUDA's own headers it
//           comes with a toolkit, which the build puts into the include path: dev/emulator.
//
// Rules for kernels, so that both ways mean the same:
//   * Launch with CU_LAUNCH(kernel, grid, block, dynamic shared bytes, stream, arguments...); put a template
//     instance in parentheses: CU_LAUNCH((kernel<A, B>), ...). Not from inside templates' unevaluated contexts.
//   * Shared memory: CU_SHARED(name, float[4][32]) and CU_DYN_SHARED(type, name), the latter once per kernel; it is
//     16-byte aligned and as large as the launch says. A CU_SHARED variable is aligned as its type asks for; vectors
//     in shared memory need arrays of Vector, or the dynamic area.
//   * Elements in global memory are read and written by load... and store..., elements of shared memory by
//     load_shared... and store_shared...: the emulator checks and counts there. Addresses may be computed freely.
//   * Barriers: block_sync() by all threads of the block that have not returned; warp_sync() by all 32 lanes.
//   * Warp functions (shuffle..., warp_sum, ldmatrix, transpose_8x8, mma_tile) are called by all 32 lanes together, so
//     blocks have a multiple of 32 threads wherever one of these is used.
//   * Shuffles, ballot, transpose_8x8 and mma_tile exchange values and order no memory; block_sync, warp_sync and
//     ldmatrix do.
//   * No inline assembly, no atomics, no cooperative groups; `#pragma unroll` is written CU_UNROLL.
//   * threadIdx, blockIdx, blockDim, gridDim, dim3, __global__, __device__, __launch_bounds__ as in CUDA.
// Tensor cores are used at the level that all targets have (sm_80: mma.sync, ldmatrix, cp.async); what only Hopper has:
// hopper.cuh.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/tensor.h"

#if !defined(__CUDACC__)

#include <cuda_emulator.h>

#else

#include <cuda_runtime.h>

// Real and emulated kernels live in different namespaces: a test program may hold both.
#define CU_BACKEND cuda_device

#define CU_UNROLL _Pragma("unroll")
#define CU_NO_UNROLL _Pragma("unroll 1")
#define CU_DEVICE __device__ __forceinline__
#define CU_SHARED(name, ...) __shared__ std::type_identity_t<__VA_ARGS__> name
#define CU_DYN_SHARED(type, name)                                  \
    extern __shared__ __align__(16) unsigned char cu_dyn_shared[]; \
    type* name = reinterpret_cast<type*>(cu_dyn_shared)

#define CU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                            \
    do {                                                                                                     \
        ::train_qat::CU_BACKEND::allow_shared_memory(reinterpret_cast<const void*>(&kernel), (shared_bytes), \
                                                     #kernel, __FILE__, __LINE__);                           \
        kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__);                                  \
        ::train_qat::CU_BACKEND::check_cuda(cudaGetLastError(), "launch of " #kernel, __FILE__, __LINE__);   \
    } while (false)
// CU_CALL(cudaFunction(...)): throws std::runtime_error with file, line and a hint.
#define CU_CALL(call) ::train_qat::CU_BACKEND::check_cuda((call), #call, __FILE__, __LINE__)

namespace train_qat::CU_BACKEND {

using CuStream = cudaStream_t;

// std::runtime_error "what: message (file:line); hint" unless status is success. In runtime.cu.
void check_cuda(cudaError_t status, const char* what, const char* file, int line);
// Lets a kernel use more than 48 KiB of dynamic shared memory. In runtime.cu.
void allow_shared_memory(const void* kernel, int64_t bytes, const char* name, const char* file, int line);

// ---- thread indices

CU_DEVICE int lane_index() {
    return static_cast<int>(threadIdx.x) & 31;
}
CU_DEVICE int warp_index() {
    return static_cast<int>(threadIdx.x) >> 5;
}

// ---- global memory

// N neighbouring elements that move as one access of N * sizeof(T) bytes (2, 4, 8 or 16; 32 as two); the address must
// be a multiple of that.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
    T element[N];
    CU_DEVICE T& operator[](int i) { return element[i]; }
    CU_DEVICE const T& operator[](int i) const { return element[i]; }
};

// The compiler cannot always see that an address, from a table for example, is one of global memory.
#define CU_ASSUME_GLOBAL(address) __builtin_assume(__isGlobal(address))

template <typename T>
CU_DEVICE T load(const T* address) {
    CU_ASSUME_GLOBAL(address);
    return *address;
}
template <typename T>
CU_DEVICE void store(T* address, T value) {
    CU_ASSUME_GLOBAL(address);
    *address = value;
}
template <int N, typename T>
CU_DEVICE Vector<T, N> load_vector(const T* address) {
    CU_ASSUME_GLOBAL(address);
    return *reinterpret_cast<const Vector<T, N>*>(address);
}
// 8 or 16 bytes in one instruction. Of what C++ assigns, nvcc 13.0 made a store for each element in RMSNorm's and
// attention's kernels: as many requests as a thread has numbers, each for a part of its sectors.
CU_DEVICE void store_words(void* address, uint32_t a, uint32_t b) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(address)), "r"(a), "r"(b)
                 : "memory");
}
CU_DEVICE void store_words(void* address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}
template <int N, typename T>
CU_DEVICE void store_vector(T* address, const Vector<T, N>& value) {
    if constexpr (sizeof value < 8) {
        CU_ASSUME_GLOBAL(address);
        *reinterpret_cast<Vector<T, N>*>(address) = value;
    } else {
        uint32_t word[sizeof value / 4];
        memcpy(word, &value, sizeof value);
        if constexpr (sizeof value == 8) {
            store_words(address, word[0], word[1]);
        } else {
            CU_UNROLL
            for (size_t i = 0; i < sizeof value / 4; i += 4)
                store_words(reinterpret_cast<char*>(address) + 4 * i, word[i], word[i + 1], word[i + 2],
                            word[i + 3]);
        }
    }
}

// ---- shared memory

template <typename T>
CU_DEVICE T load_shared(const T* address) {
    return *address;
}
template <typename T>
CU_DEVICE void store_shared(T* address, T value) {
    *address = value;
}
template <int N, typename T>
CU_DEVICE Vector<T, N> load_shared_vector(const T* address) {
    return *reinterpret_cast<const Vector<T, N>*>(address);
}
template <int N, typename T>
CU_DEVICE void store_shared_vector(T* address, const Vector<T, N>& value) {
    *reinterpret_cast<Vector<T, N>*>(address) = value;
}

// Starts copying 16 bytes from global to shared memory, both addresses multiples of 16: the first `valid`
// bytes (0 ... 16) are copied, the rest become zero. Visible to the issuing thread after cp_async_wait, to
// others after a barrier behind that.
CU_DEVICE void cp_async_16(void* shared, const void* global, int valid = 16) {
    const auto destination = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(global), "r"(valid)
                 : "memory");
}
// Closes the group of copies started since the last commit; an empty group counts too.
CU_DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `pending` of the newest groups of this thread are under way.
template <int pending>
CU_DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- barriers and warps

CU_DEVICE void block_sync() {
    __syncthreads();
}
CU_DEVICE void warp_sync() {
    __syncwarp();
}

// The value of the lane whose index differs by the bits of `bits`; of lane `source`. T: 4 or 8 bytes.
template <typename T>
CU_DEVICE T shuffle_xor(T value, int bits) {
    return __shfl_xor_sync(0xffffffffu, value, bits);
}
template <typename T>
CU_DEVICE T shuffle(T value, int source) {
    return __shfl_sync(0xffffffffu, value, source);
}

// Bit i: `condition` of lane i.
CU_DEVICE uint32_t ballot(bool condition) {
    return __ballot_sync(0xffffffffu, condition);
}

// ---- tensor cores

// Four 8x8 matrices of 16-bit elements from shared memory. Lane 8i + r gives the address of row r of matrix i, 16
// bytes, a multiple of 16. Register i of lane l holds elements 2(l%4) and 2(l%4)+1 of row l/4 of matrix i.
CU_DEVICE void ldmatrix_x4(uint32_t (&registers)[4], const void* row) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
}
// The same with each matrix transposed: register i of lane l holds column l/4, rows 2(l%4) and 2(l%4)+1.
CU_DEVICE void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
}

// An 8x8 matrix of 16-bit elements, spread over the warp as ldmatrix leaves it, transposed.
CU_DEVICE uint32_t transpose_8x8(uint32_t matrix) {
    uint32_t result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
    return result;
}

// sum (M x N, float32) += a (M x 16, bfloat16) b (16 x N, bfloat16), M a multiple of 16, N of 8, spread over
// the warp as mma.m16n8k16 wants it. With g = lane / 4 and t = lane % 4, for tile (i, j):
//   sum[i][j][0..3]: rows 16i + g, g, g+8, g+8; columns 8j + 2t, 2t+1, 2t, 2t+1
//   a[i][0..3]:      rows 16i + g, g+8, g, g+8; columns 2t and 2t+1 (0, 1), 2t+8 and 2t+9 (2, 3)
//   b[j][0..1]:      column 8j + g; rows 2t and 2t+1 (0), 2t+8 and 2t+9 (1)
// In a register the first of two elements is the low half.
template <int M, int N>
CU_DEVICE void mma_tile(float (&sum)[M / 16][N / 8][4], const uint32_t (&a)[M / 16][4],
                        const uint32_t (&b)[N / 8][2]) {
    CU_UNROLL
    for (int i = 0; i < M / 16; ++i) {
        CU_UNROLL
        for (int j = 0; j < N / 8; ++j)
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                "{%8, %9}, {%0, %1, %2, %3};"
                : "+f"(sum[i][j][0]), "+f"(sum[i][j][1]), "+f"(sum[i][j][2]), "+f"(sum[i][j][3])
                : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
    }
}

// ---- numbers

// Two floats rounded to bfloat16 in one register, `low` in the lower half (the lower address).
CU_DEVICE uint32_t pack_bfloat16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
CU_DEVICE float low_bfloat16(uint32_t packed) {
    return __uint_as_float(packed << 16);
}
CU_DEVICE float high_bfloat16(uint32_t packed) {
    return __uint_as_float(packed & 0xffff0000u);
}

// a b + c of two bfloat16 numbers in a register each; sums that bfloat16 can hold are exact.
CU_DEVICE uint32_t fma_bfloat16(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}
// Byte i is number (selector >> 4i) % 8 of the bytes of `low` (0 ... 3) and `high` (4 ... 7).
CU_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    return __byte_perm(low, high, selector);
}

// 2^x, within 2^-21 of the truth relative to it; 2^-infinity = 0.
CU_DEVICE float fast_exp2(float x) {
    float result;
    asm("ex2.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
// The same, but 0 where it is below 2^-126: one instruction instead of four.
CU_DEVICE float flushed_exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// 1 / x, within 2^-23 of the truth relative to it, but 0 where it is below 2^-126.
CU_DEVICE float flushed_reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

}  // namespace train_qat::CU_BACKEND

#endif

namespace train_qat::CU_BACKEND {

// ---- built from the above

// Sum and maximum over the 32 lanes, the same bits in every lane.
template <typename T>
CU_DEVICE T warp_sum(T value) {
    CU_UNROLL
    for (int bits = 16; bits > 0; bits /= 2) value += shuffle_xor(value, bits);
    return value;
}
template <typename T>
CU_DEVICE T warp_max(T value) {
    CU_UNROLL
    for (int bits = 16; bits > 0; bits /= 2) {
        const T other = shuffle_xor(value, bits);
        value = other > value ? other : value;
    }
    return value;
}

// Sum over the block's threads, the same bits in every thread; a fixed order. scratch: threads / 32 elements
// of shared memory that nothing else uses. Ends with a barrier, so scratch may be used again at once.
template <int threads, typename T>
CU_DEVICE T block_sum(T value, T* scratch) {
    value = warp_sum(value);
    if (lane_index() == 0) store_shared(scratch + warp_index(), value);
    block_sync();
    T total = load_shared(scratch);
    CU_UNROLL
    for (int warp = 1; warp < threads / 32; ++warp) total += load_shared(scratch + warp);
    block_sync();
    return total;
}

// Blocks that cover `count` items.
inline unsigned blocks_for(int64_t count, int64_t per_block) {
    return static_cast<unsigned>((count + per_block - 1) / per_block);
}

// Whether an access of N elements may start at `address` and at every row `pitch` elements further.
template <int N, typename T>
inline bool vector_aligned(const T* address, int64_t pitch = N) {
    return reinterpret_cast<uintptr_t>(address) % (N * sizeof(T)) == 0 && pitch % N == 0;
}

}  // namespace train_qat::CU_BACKEND
