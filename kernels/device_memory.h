// Memory of a backend, with an owner.
#pragma once

#include <cstdint>
#include <utility>

#include "kernels/backend.h"

namespace train_qat {

// Memory of a backend, released at the end of its life.
class DeviceMemory {
  public:
    DeviceMemory() = default;
    DeviceMemory(Backend& backend, int64_t bytes)
        : backend_(&backend), data_(bytes > 0 ? backend.allocate(bytes) : nullptr), bytes_(bytes) {}
    ~DeviceMemory() { reset(); }
    DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
    DeviceMemory& operator=(DeviceMemory&& other) noexcept {
        swap(other);
        return *this;
    }
    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

  private:
    void reset() {
        if (data_ != nullptr) backend_->release(data_);
        data_ = nullptr;
    }
    void swap(DeviceMemory& other) noexcept {
        std::swap(backend_, other.backend_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    Backend* backend_ = nullptr;
    void* data_ = nullptr;
    int64_t bytes_ = 0;
};

}  // namespace train_qat
