// What the emulator's own tests share: an emulated device and memory on it.
#pragma once

#include <atomic>
#include <cstring>
#include <string>
#include <vector>

#include "dev/emulator/emulator.h"
#include "kernels/cuda/platform/portable.cuh"
#include "kernels/cuda/platform/runtime.h"
#include "test/support/catch.h"

namespace train_qat::test {

// Device memory that starts as a copy of `values` and can be read back.
template <typename T>
class DeviceArray {
  public:
    DeviceArray(cuda_emulated::Runtime& runtime, const std::vector<T>& values)
        : runtime_(runtime), count_(values.size()) {
        data_ = static_cast<T*>(runtime_.allocate(bytes()));
        runtime_.copy_to_device(data_, values.data(), bytes());
    }
    DeviceArray(cuda_emulated::Runtime& runtime, int64_t count)
        : DeviceArray(runtime, std::vector<T>(static_cast<size_t>(count))) {}
    ~DeviceArray() { runtime_.release(data_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    T* data() const { return data_; }
    std::vector<T> read() const {
        std::vector<T> values(count_);
        runtime_.copy_to_host(values.data(), data_, bytes());
        return values;
    }

  private:
    int64_t bytes() const { return static_cast<int64_t>(count_ * sizeof(T)); }
    cuda_emulated::Runtime& runtime_;
    size_t count_;
    T* data_ = nullptr;
};

}  // namespace train_qat::test
