// One block of device memory for many tensors. A dry run places all tensors first and knows the size; memory
// is taken once, and only if all of it is there.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/device_memory.h"

namespace train_qat {

class Arena {
  public:
    // Reserves room for `view` and gives it dtype and shape; its data pointer is set by allocate(). The view
    // must not move before that. `purpose` is the line of the memory table that it counts under.
    void place(const std::string& purpose, Tensor& view, DType dtype, std::initializer_list<int64_t> shape);
    // The same for plain bytes.
    void place_bytes(const std::string& purpose, void*& memory, int64_t bytes);

    int64_t bytes() const { return bytes_; }

    struct Purpose {
        std::string name;
        int64_t bytes = 0;
    };
    const std::vector<Purpose>& purposes() const { return purposes_; }

    // Takes the memory (zero-filled) and sets all data pointers. Once.
    void allocate(Backend& backend);
    bool allocated() const { return memory_.data() != nullptr; }

  private:
    int64_t reserve(const std::string& purpose, int64_t bytes);

    struct Placement {
        void** pointer;
        int64_t offset;
    };
    std::vector<Placement> placements_;
    std::vector<Purpose> purposes_;
    int64_t bytes_ = 0;
    DeviceMemory memory_;
};

}  // namespace train_qat
