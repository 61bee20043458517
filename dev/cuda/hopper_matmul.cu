// The matmul of a linear layer, z = x qᵀ in bfloat16 with float32 sums, by Hopper's own instructions: tensor maps bring
// tiles into a ring of stages, warpgroups multiply them. One block per multiprocessor; each walks its share of the output
// tiles with three warpgroups: one loads, two multiply 64 rows each and store.
//
//   1 128 x 64 tiles, 3 stages     few sums: shows what the ring costs
//   2 128 x 128 tiles, 4 stages
//   3 128 x 256 tiles, 4 stages    each number from shared memory serves most products
//
// For cards of compute capability 9.0; rows of x, q and z must be multiples of 16 bytes (8 numbers).
#include <algorithm>

#include "dev/cuda/bench.h"
#include "kernels/cuda/platform/hopper_device.h"
#include "kernels/cuda/platform/hopper_ring.cuh"
#include "kernels/cuda/platform/tensor_map.cuh"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int tile_rows = 128, slice = 64;  // of M, and of K at a time: 128 bytes
constexpr int warpgroup = 128, roles = 3;   // threads; a producer and two consumers
constexpr int output_buffers = 2;           // of each consumer
constexpr int rows_of_consumer = 64, output_columns = 64;
constexpr int output_bytes = rows_of_consumer * output_columns * 2;

struct Steps {
    int row_tiles, tiles, slices;
};

template <int tile_columns, int stages>
struct Stages {
    static constexpr int x_bytes = tile_rows * slice * 2, stage_bytes = x_bytes + tile_columns * slice * 2;
    static constexpr int outputs = stages * stage_bytes;
    static constexpr int bytes = outputs + 2 * output_buffers * output_bytes + swizzle_atom_bytes;
};

template <int tile_columns, int stages>
CU_DEVICE void produce(const TensorMap* x, const TensorMap* q, unsigned char* memory, RingBarriers barriers,
                       Steps steps) {
    using Ring = Stages<tile_columns, stages>;
    RingPlace<stages> ring(1);
    for (int tile = static_cast<int>(blockIdx.x); tile < steps.tiles; tile += static_cast<int>(gridDim.x)) {
        const int row = tile % steps.row_tiles * tile_rows, column = tile / steps.row_tiles * tile_columns;
        for (int k = 0; k < steps.slices; ++k, ring.advance()) {
            unsigned char* const stage = memory + ring.stage * Ring::stage_bytes;
            Barrier* const full = barriers.full + ring.stage;
            barrier_wait(barriers.empty + ring.stage, ring.parity);
            barrier_arrive_expect(full, Ring::stage_bytes);
            tensor_load(stage, x, k * slice, row, full);
            tensor_load(stage + Ring::x_bytes, q, k * slice, column, full);
        }
    }
}

// One slice: 64 rows of x by all rows of q.
template <int count>
CU_DEVICE void multiply_slice(float (&sum)[count], const unsigned char* x, const unsigned char* q,
                              bool accumulate) {
    const uint64_t a = k_major_descriptor(x), b = k_major_descriptor(q);
    CU_UNROLL
    for (int k = 0; k < slice; k += 16)
        wgmma(sum, advance_descriptor(a, 2 * k), advance_descriptor(b, 2 * k), accumulate || k > 0);
}

// The consumer's sums as bfloat16 through shared memory, 64 columns at a time. stored: how often it has done that.
template <int count>
CU_DEVICE void store_tile(const float (&sum)[count], const TensorMap* z, unsigned char* buffers, int consumer,
                          int row, int column, int& stored) {
    const int lane = lane_index(), warp = warp_index() % 4;
    const bool storing = threadIdx.x % warpgroup == 0;
    CU_UNROLL
    for (int part = 0; part < 2 * count / output_columns; ++part, ++stored) {
        unsigned char* const buffer = buffers + stored % output_buffers * output_bytes;
        if (storing) bulk_wait_read<output_buffers - 1>();
        group_sync(1 + consumer, warpgroup);
        CU_UNROLL
        for (int chunk = 0; chunk < 8; chunk += 2) {
            uint32_t pairs[4];
            CU_UNROLL
            for (int i = 0; i < 4; ++i)
                pairs[i] =
                    pack_bfloat16(sum[part * 32 + chunk * 4 + 2 * i], sum[part * 32 + chunk * 4 + 2 * i + 1]);
            stmatrix_x4(buffer + swizzled_chunk(16 * warp + lane % 16, chunk + lane / 16), pairs);
        }
        fence_async_proxy();
        group_sync(1 + consumer, warpgroup);
        if (storing) {
            tensor_store(z, column + part * output_columns, row, buffer);
            bulk_commit();
        }
    }
}

template <int tile_columns, int stages>
CU_DEVICE void consume(const TensorMap* z, unsigned char* memory, RingBarriers barriers, Steps steps,
                       int consumer) {
    using Ring = Stages<tile_columns, stages>;
    RingPlace<stages> ring(0);
    unsigned char* const buffers = memory + Ring::outputs + consumer * output_buffers * output_bytes;
    const bool arrives = lane_index() == 0;
    int stored = 0;
    float sum[tile_columns / 2];
    for (int tile = static_cast<int>(blockIdx.x); tile < steps.tiles; tile += static_cast<int>(gridDim.x)) {
        int last = 0;
        for (int k = 0; k < steps.slices; ++k, ring.advance()) {
            const unsigned char* const stage = memory + ring.stage * Ring::stage_bytes;
            barrier_wait(barriers.full + ring.stage, ring.parity);
            wgmma_fence();
            multiply_slice(sum, stage + consumer * rows_of_consumer * swizzle_row_bytes,
                           stage + Ring::x_bytes, k > 0);
            wgmma_commit();
            // The slice before has been read.
            wgmma_wait<1>();
            if (k > 0 && arrives) barrier_arrive(barriers.empty + last);
            last = ring.stage;
        }
        wgmma_wait<0>();
        keep_registers(sum);
        if (arrives) barrier_arrive(barriers.empty + last);
        store_tile(sum, z, buffers, consumer,
                   tile % steps.row_tiles * tile_rows + consumer * rows_of_consumer,
                   tile / steps.row_tiles * tile_columns, stored);
    }
    if (threadIdx.x % warpgroup == 0) bulk_wait_read<0>();
}

template <int tile_columns, int stages>
__global__ void __launch_bounds__(roles* warpgroup, 1)
    ring_matmul(const CU_GRID_CONSTANT TensorMap x, const CU_GRID_CONSTANT TensorMap q,
                const CU_GRID_CONSTANT TensorMap z, Steps steps) {
    if constexpr (hopper_target) {
        CU_DYN_SHARED(unsigned char, dynamic);
        CU_SHARED(full, Barrier[stages]);
        CU_SHARED(empty, Barrier[stages]);
        unsigned char* const memory = align_shared(dynamic);
        const RingBarriers barriers{full, empty};
        if (threadIdx.x == 0) {
            prefetch_tensor_map(&x);
            prefetch_tensor_map(&q);
            prefetch_tensor_map(&z);
            init_ring<stages>(barriers, (roles - 1) * warpgroup / 32);
        }
        block_sync();
        const int role = static_cast<int>(threadIdx.x) / warpgroup;
        if (role == 0) {
            shrink_registers<24>();
            if (threadIdx.x == 0) produce<tile_columns, stages>(&x, &q, memory, barriers, steps);
        } else {
            grow_registers<240>();
            consume<tile_columns, stages>(&z, memory, barriers, steps, role - 1);
        }
    }
}

// ---- the benchmark

class HopperMatmul final : public Problem {
  public:
    HopperMatmul(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          M_(sizes.at("rows")),
          N_(sizes.at("outputs")),
          K_(sizes.at("inputs")),
          x_(normals(DType::bfloat16, {M_, K_})),
          q_(normals(DType::bfloat16, {N_, K_})),
          z_(output(DType::bfloat16, {M_, N_})) {
        require_hopper(backend.device(), "hopper_matmul", "use such a card");
        multiprocessors_ = backend.device().properties().multiprocessors;
    }

    std::vector<Operation> operations() override {
        const double flops =
            2.0 * static_cast<double>(M_) * static_cast<double>(N_) * static_cast<double>(K_);
        return {{.name = "forward, z = x qT",
                 .bytes = static_cast<double>(x_.tensor().bytes() + q_.tensor().bytes() + z_.bytes()),
                 .flops = flops,
                 .reset = [this] { poison(z_); },
                 .compare = [this] { return compare(); },
                 .variants = {{"128 x 64, 3 stages", [this] { multiply<64, 3>(); }},
                              {"128 x 128, 4 stages", [this] { multiply<128, 4>(); }},
                              {"128 x 256, 4 stages", [this] { multiply<256, 4>(); }}}}};
    }

  private:
    template <int tile_columns, int stages>
    void multiply() {
        const bfloat16 *x = x_.tensor().as<bfloat16>(), *q = q_.tensor().as<bfloat16>();
        const TensorMap x_map = make_matrix_map("x", x, M_, K_, tile_rows);
        const TensorMap q_map = make_matrix_map("q", q, N_, K_, tile_columns);
        const TensorMap z_map = make_matrix_map("z", z_.as<bfloat16>(), M_, N_, rows_of_consumer);
        const Steps steps{static_cast<int>(blocks_for(M_, tile_rows)),
                          static_cast<int>(blocks_for(M_, tile_rows) * blocks_for(N_, tile_columns)),
                          static_cast<int>(blocks_for(K_, slice))};
        CU_LAUNCH((ring_matmul<tile_columns, stages>),
                  static_cast<unsigned>(std::min(steps.tiles, multiprocessors_)), roles * warpgroup,
                  (Stages<tile_columns, stages>::bytes), stream(), x_map, q_map, z_map, steps);
    }

    Comparison compare() {
        Comparison result;
        for (int64_t m : sample(M_))
            result.add(read(z_.rows(m, 1)),
                       reference::matmul_forward(x_.rows(m, 1), {q_.all(), {}}, 1, N_, K_), DType::bfloat16,
                       float32_sum(K_));
        return result;
    }

    int64_t M_, N_, K_;
    int multiprocessors_ = 1;
    Numbers x_, q_;
    Tensor z_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark(
        {"hopper_matmul",
         "Matmul of a linear layer in bfloat16 by Hopper's own instructions, forward.",
         {{"rows", 8192, {67, 1, 300}}, {"outputs", 4096, {104, 8, 328}}, {"inputs", 1024, {72, 8, 320}}},
         [](CudaBackend& backend, const Sizes& sizes) {
             return std::make_unique<HopperMatmul>(backend, sizes);
         }},
        argc, argv);
}
