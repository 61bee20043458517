// A small matmul z = x qᵀ as Hopper kernels are built: one warpgroup loads tiles into a ring of three stages, two multiply
// and store 64 rows each, every block walks its share of tiles. With one mistake, if asked for.
#pragma once

#include "test/emulator/hopper_fixture.h"

namespace train_qat::CU_BACKEND {

enum class Fault {
    none,
    release_before_wait,  // a stage is free before its products have been waited for
    no_proxy_fence,       // outputs are stored without fence_async_proxy
    no_wait_read,         // an output buffer is written again with no bulk_wait_read
    no_final_wait_read,   // a thread returns while its stores still read
    no_full_wait,         // consumers do not wait for the copies
    no_empty_wait,        // the producer does not wait for the consumers
    producer_parity,      // the producer begins with parity 0
    too_many_bytes,
    too_few_bytes,
    one_copy_too_few,         // bytes are announced for one copy of two
    empty_count_large,        // one more arrival than there are consumers
    empty_count_small,        // one less
    no_wait_before_epilogue,  // sums are used with no wgmma_wait
    waits_for_too_few,        // wgmma_wait<1> where <0> is needed
    no_wgmma_fence,
    group_of_too_many,  // group_sync counts 256 threads where 128 come
    groups_disagree,    // one warp counts 256, the others 128
    group_divergence,   // one lane does not come
    no_barrier_fence,   // copies land on barriers without fence_barrier_init
    sum_changed_in_flight,
    one_warp_multiplies_less,
};

constexpr int gemm_rows = 128, gemm_columns = 64, gemm_slice = 64, gemm_stages = 3;
constexpr int gemm_x_bytes = gemm_rows * gemm_slice * 2, gemm_q_bytes = gemm_columns * gemm_slice * 2;
constexpr int gemm_stage_bytes = gemm_x_bytes + gemm_q_bytes, gemm_output_bytes = 64 * 64 * 2;
constexpr int gemm_shared_bytes = gemm_stages * gemm_stage_bytes + 2 * gemm_output_bytes + swizzle_atom_bytes;

struct GemmSteps {
    int row_tiles, tiles, slices;
};

template <Fault fault>
void gemm_producer(const TensorMap* x, const TensorMap* q, unsigned char* memory, Barrier* full,
                   Barrier* empty, GemmSteps steps) {
    int stage = 0;
    uint32_t parity = fault == Fault::producer_parity ? 0 : 1;
    for (int tile = static_cast<int>(blockIdx.x); tile < steps.tiles; tile += static_cast<int>(gridDim.x))
        for (int k = 0; k < steps.slices; ++k) {
            unsigned char* const here = memory + stage * gemm_stage_bytes;
            if (fault != Fault::no_empty_wait) barrier_wait(empty + stage, parity);
            const int bytes = fault == Fault::too_many_bytes     ? gemm_stage_bytes + 16
                              : fault == Fault::too_few_bytes    ? gemm_stage_bytes - 16
                              : fault == Fault::one_copy_too_few ? gemm_q_bytes
                                                                 : gemm_stage_bytes;
            barrier_arrive_expect(full + stage, bytes);
            tensor_load(here, x, k * gemm_slice, tile % steps.row_tiles * gemm_rows, full + stage);
            tensor_load(here + gemm_x_bytes, q, k * gemm_slice, tile / steps.row_tiles * gemm_columns,
                        full + stage);
            if (++stage == gemm_stages) {
                stage = 0;
                parity ^= 1;
            }
        }
}

template <Fault fault>
void gemm_store(const float (&sum)[32], const TensorMap* z, unsigned char* buffer, int consumer, int row,
                int column) {
    const int lane = lane_index(), warp = warp_index() % 4;
    const bool storing = threadIdx.x % 128 == 0;
    if (storing && fault != Fault::no_wait_read) bulk_wait_read<0>();
    group_sync(1 + consumer, fault == Fault::group_of_too_many ? 256 : 128);
    for (int chunk = 0; chunk < 8; chunk += 2) {
        uint32_t pairs[4];
        for (int i = 0; i < 4; ++i)
            pairs[i] = pack_bfloat16(sum[chunk * 4 + 2 * i], sum[chunk * 4 + 2 * i + 1]);
        stmatrix_x4(buffer + swizzled_chunk(16 * warp + lane % 16, chunk + lane / 16), pairs);
    }
    if (fault != Fault::no_proxy_fence) fence_async_proxy();
    if (fault != Fault::group_divergence || lane != 5)
        group_sync(1 + consumer, fault == Fault::groups_disagree && warp == 3 ? 256 : 128);
    if (storing) {
        tensor_store(z, column, row, buffer);
        bulk_commit();
    }
}

template <Fault fault>
void gemm_consumer(const TensorMap* z, unsigned char* memory, Barrier* full, Barrier* empty, GemmSteps steps,
                   int consumer) {
    int stage = 0;
    uint32_t parity = 0;
    unsigned char* const buffer = memory + gemm_stages * gemm_stage_bytes + consumer * gemm_output_bytes;
    const bool arrives = lane_index() == 0;
    float sum[32];
    for (int tile = static_cast<int>(blockIdx.x); tile < steps.tiles; tile += static_cast<int>(gridDim.x)) {
        int last = 0;
        for (int k = 0; k < steps.slices; ++k) {
            const unsigned char* const here = memory + stage * gemm_stage_bytes;
            if (fault != Fault::no_full_wait) barrier_wait(full + stage, parity);
            if (fault != Fault::no_wgmma_fence) wgmma_fence();
            const uint64_t a = k_major_descriptor(here + consumer * 64 * swizzle_row_bytes);
            const uint64_t b = k_major_descriptor(here + gemm_x_bytes);
            const int end =
                fault == Fault::one_warp_multiplies_less && warp_index() % 4 == 2 ? 48 : gemm_slice;
            for (int step = 0; step < end; step += 16)
                wgmma(sum, advance_descriptor(a, 2 * step), advance_descriptor(b, 2 * step),
                      k > 0 || step > 0);
            wgmma_commit();
            if (fault == Fault::sum_changed_in_flight) sum[7] = 0;
            if (fault == Fault::release_before_wait) {
                if (arrives) barrier_arrive(empty + stage);
            } else {
                wgmma_wait<1>();
                if (k > 0 && arrives) barrier_arrive(empty + last);
            }
            last = stage;
            if (++stage == gemm_stages) {
                stage = 0;
                parity ^= 1;
            }
        }
        if (fault == Fault::waits_for_too_few)
            wgmma_wait<1>();
        else if (fault != Fault::no_wait_before_epilogue)
            wgmma_wait<0>();
        keep_registers(sum);
        if (fault != Fault::release_before_wait && arrives) barrier_arrive(empty + last);
        gemm_store<fault>(sum, z, buffer, consumer, tile % steps.row_tiles * gemm_rows + consumer * 64,
                          tile / steps.row_tiles * gemm_columns);
    }
    if (threadIdx.x % 128 == 0 && fault != Fault::no_final_wait_read) bulk_wait_read<0>();
}

template <Fault fault>
__global__ void __launch_bounds__(384, 1)
    hopper_gemm(const CU_GRID_CONSTANT TensorMap x, const CU_GRID_CONSTANT TensorMap q,
                const CU_GRID_CONSTANT TensorMap z, GemmSteps steps) {
    CU_DYN_SHARED(unsigned char, dynamic);
    CU_SHARED(full, Barrier[gemm_stages]);
    CU_SHARED(empty, Barrier[gemm_stages]);
    unsigned char* const memory = align_shared(dynamic);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < gemm_stages; ++stage) {
            barrier_init(&full[stage], 1);
            barrier_init(&empty[stage], fault == Fault::empty_count_large   ? 9
                                        : fault == Fault::empty_count_small ? 7
                                                                            : 8);
        }
        if (fault != Fault::no_barrier_fence) fence_barrier_init();
        fence_async_proxy();
    }
    block_sync();
    const int role = static_cast<int>(threadIdx.x) / 128;
    if (role == 0) {
        shrink_registers<24>();
        if (threadIdx.x == 0) gemm_producer<fault>(&x, &q, memory, full, empty, steps);
    } else {
        grow_registers<240>();
        gemm_consumer<fault>(&z, memory, full, empty, steps, role - 1);
    }
}

// x (M, K), q (N, K) and z (M, N) on the device, z NaN at first.
struct Gemm {
    int64_t M, N, K;
    bool x_swizzled = true;
    std::vector<bfloat16> x_values, q_values;
    test::DeviceArray<bfloat16> x, q, z;

    Gemm(Runtime& runtime, test::Fresh& fresh, int64_t M, int64_t N, int64_t K)
        : M(M),
          N(N),
          K(K),
          x_values(fresh.numbers<bfloat16>(M * K)),
          q_values(fresh.numbers<bfloat16>(N * K)),
          x(runtime, x_values),
          q(runtime, q_values),
          z(runtime, std::vector<bfloat16>(static_cast<size_t>(M * N), bfloat16(std::nanf("")))) {}

    template <Fault fault = Fault::none>
    void run(Runtime& runtime, unsigned blocks) const {
        TensorMap x_map = make_matrix_map("x", x.data(), M, K, gemm_rows);
        if (!x_swizzled)
            x_map = make_tensor_map(
                x.data(),
                {.name = "x", .extent = {K, M}, .pitch = {2 * K}, .box = {64, gemm_rows}, .swizzled = false});
        const TensorMap q_map = make_matrix_map("q", q.data(), N, K, gemm_columns);
        const TensorMap z_map = make_matrix_map("z", z.data(), M, N, 64);
        const int row_tiles = static_cast<int>(blocks_for(M, gemm_rows));
        const GemmSteps steps{row_tiles, row_tiles * static_cast<int>(blocks_for(N, gemm_columns)),
                              static_cast<int>(blocks_for(K, gemm_slice))};
        CU_LAUNCH((hopper_gemm<fault>), blocks, 384, gemm_shared_bytes, runtime.stream(), x_map, q_map, z_map,
                  steps);
    }

    // The largest error as a share of what rounding the exact sum to bfloat16 allows.
    double error() const {
        const std::vector<bfloat16> result = z.read();
        double worst = 0;
        for (int64_t m = 0; m < M; ++m)
            for (int64_t n = 0; n < N; ++n) {
                double sum = 0;
                for (int64_t k = 0; k < K; ++k)
                    sum += static_cast<double>(x_values[static_cast<size_t>(m * K + k)]) *
                           static_cast<double>(q_values[static_cast<size_t>(n * K + k)]);
                const double off =
                    std::abs(static_cast<double>(result[static_cast<size_t>(m * N + n)]) - sum);
                const double share = off / (std::abs(sum) * 0x1p-8 + 1e-9);
                if (!(share <= worst)) worst = std::isnan(share) ? INFINITY : share;
            }
        return worst;
    }
};

}  // namespace train_qat::CU_BACKEND
