// One device as the backend uses it: memory, a compute stream and a copy stream, graphs, timing. Two
// implementations: runtime.cu for a GPU and dev/emulated_cuda/runtime.cpp for the emulated device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

struct DeviceProperties {
    std::string name;
    int major = 0, minor = 0;  // compute capability
    int multiprocessors = 0;
    int64_t memory = 0;                   // bytes, of the whole device
    int64_t shared_memory_per_block = 0;  // bytes that a block can ask for
    std::string libraries;                // names and versions of what this program was built with
    double memory_bandwidth = 0;          // bytes/s, from the memory clock; 0: unknown
    double bfloat16_flops = 0;            // dense tensor-core peak, FLOP/s; 0: unknown
    double float32_flops = 0;             // FLOP/s outside the tensor cores
};

// Work that was recorded instead of run.
class Graph {
  public:
    virtual ~Graph() = default;
};

class Runtime {
  public:
    // std::runtime_error in one line with a hint: no device, a driver older than the toolkit, a device for
    // which this program holds no code.
    explicit Runtime(int device);
    ~Runtime();
    Runtime(const Runtime&) = delete;
    Runtime& operator=(const Runtime&) = delete;

    const DeviceProperties& properties() const;
    CuStream stream() const;

    int64_t available_memory() const;
    void* allocate(int64_t bytes);  // zero-filled, 256-byte aligned; std::runtime_error without enough memory
    void release(void* memory);

    // Returns when `host` may be written again; the copy itself takes its turn in the compute stream, while
    // its way to the device overlaps with earlier work.
    void copy_to_device(void* device, const void* host, int64_t bytes);
    void copy_to_host(void* host, const void* device, int64_t bytes);  // waits
    void fill_zero(void* device, int64_t bytes);
    void synchronize();  // throws std::runtime_error when a kernel has failed

    // Records what `work` enqueues. `work` must not allocate, copy from the host or wait.
    std::unique_ptr<Graph> record(const std::function<void()>& work);
    void launch(Graph& graph);

    // Seconds that the device takes for what `work` enqueues: the best of `repetitions`, after one to warm
    // up.
    double seconds(const std::function<void()>& work, int repetitions);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace train_qat::CU_BACKEND
