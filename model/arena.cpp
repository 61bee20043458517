#include "model/arena.h"

#include <algorithm>
#include <stdexcept>

namespace train_qat {

namespace {

// Two cache lines of a GPU: enough for every vector access of any backend.
constexpr int64_t alignment = 256;

}  // namespace

int64_t Arena::reserve(const std::string& purpose, int64_t bytes) {
    if (allocated()) throw std::logic_error("Arena: placed after allocation");
    const int64_t offset = bytes_;
    const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
    bytes_ += rounded;
    auto found = std::find_if(purposes_.begin(), purposes_.end(),
                              [&](const Purpose& entry) { return entry.name == purpose; });
    if (found == purposes_.end()) found = purposes_.insert(purposes_.end(), {purpose, 0});
    found->bytes += rounded;
    return offset;
}

void Arena::place(const std::string& purpose, Tensor& view, DType dtype,
                  std::initializer_list<int64_t> shape) {
    view = Tensor(nullptr, dtype, shape);
    placements_.push_back({&view.data, reserve(purpose, view.bytes())});
}

void Arena::place_bytes(const std::string& purpose, void*& memory, int64_t bytes) {
    memory = nullptr;
    if (bytes > 0) placements_.push_back({&memory, reserve(purpose, bytes)});
}

void Arena::allocate(Backend& backend) {
    memory_ = DeviceMemory(backend, bytes_);
    for (const Placement& placement : placements_)
        *placement.pointer = static_cast<char*>(memory_.data()) + placement.offset;
}

}  // namespace train_qat
