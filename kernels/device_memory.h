// Device memory with an owner, released at the end of its life.
#pragma once

#include <cstdint>
#include <utility>

namespace train_qat {

class Backend;

// Device: has void* allocate(int64_t bytes) and void release(void*), and outlives the memory.
template <typename Device>
class OwnedMemory {
  public:
    OwnedMemory() = default;
    OwnedMemory(Device& device, int64_t bytes)
        : device_(&device), data_(bytes > 0 ? device.allocate(bytes) : nullptr), bytes_(bytes) {}
    ~OwnedMemory() {
        if (data_ != nullptr) device_->release(data_);
    }
    OwnedMemory(OwnedMemory&& other) noexcept { swap(other); }
    OwnedMemory& operator=(OwnedMemory&& other) noexcept {
        swap(other);
        return *this;
    }
    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

  private:
    void swap(OwnedMemory& other) noexcept {
        std::swap(device_, other.device_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    Device* device_ = nullptr;
    void* data_ = nullptr;
    int64_t bytes_ = 0;
};

using DeviceMemory = OwnedMemory<Backend>;

}  // namespace train_qat
