// One device as operations see it: what it is, its one stream, memory, scratch, work that is recorded and replayed,
// and what was chosen by timing. The thin layer below, with an implementation for a GPU and one for the emulator, is
// Runtime.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "kernels/backend.h"
#include "kernels/device_memory.h"
#include "kernels/cuda/platform/cuda_options.h"
#include "kernels/cuda/platform/portable.cuh"
#include "kernels/cuda/platform/runtime.h"
#include "kernels/cuda/platform/tuning_table.h"

namespace train_qat::CU_BACKEND {

class Device;

using DeviceBuffer = OwnedMemory<Device>;

class Device {
  public:
    explicit Device(const CudaOptions& options);

    const CudaOptions& options() const { return options_; }
    const DeviceProperties& properties() const { return runtime_.properties(); }
    CuStream stream() const { return runtime_.stream(); }
    Runtime& runtime() { return runtime_; }
    const Runtime& runtime() const { return runtime_; }
    TuningTable& tuning() { return tuning_; }
    // Tells CudaOptions::report, the first time.
    void report_once(const std::string& line);

    void* allocate(int64_t bytes) { return runtime_.allocate(bytes); }
    void release(void* memory);  // drops all records: they may hold the address

    // At least `bytes` of device memory, 256-byte aligned, until the next call of scratch. Its first use must not lie
    // in recorded work.
    void* scratch(int64_t bytes);

    // Backend::replay: the first call of a key runs `work`, the second one records it, later ones run the record.
    void replay(const ReplayKey& key, const std::function<void()>& work);

  private:
    struct Record {
        bool seen = false;
        std::unique_ptr<Graph> graph;
    };

    // Each member may use those above it, also while it is destroyed: scratch_ drops the records.
    CudaOptions options_;
    Runtime runtime_;
    TuningTable tuning_;
    std::set<std::string> reported_;
    std::map<ReplayKey, Record> records_;
    bool recording_ = false;
    DeviceBuffer scratch_;
};

}  // namespace train_qat::CU_BACKEND
