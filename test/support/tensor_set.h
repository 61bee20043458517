// Named tensors in a backend's memory for tests of files: any bytes, also those that are NaN or denormal
// numbers.
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/device_memory.h"
#include "kernels/ranks/communicator.h"
#include "model/storage/safetensors.h"

namespace train_qat::test {

// The communicator of one rank.
inline Communicator& alone() {
    static const std::unique_ptr<Communicator> communicator = make_single_communicator();
    return *communicator;
}

class TensorSet {
  public:
    explicit TensorSet(Backend& backend) : backend_(backend) {}

    // Adds a zero-filled tensor.
    TensorSet& add(const std::string& name, DType dtype, std::initializer_list<int64_t> shape) {
        Tensor tensor(nullptr, dtype, shape);
        tensor.data = memory_.emplace_back(backend_, tensor.bytes()).data();
        tensors_.push_back({name, tensor});
        return *this;
    }

    // Random bytes everywhere.
    TensorSet& randomize(uint32_t seed) {
        std::mt19937 engine(seed);
        for (const auto& named : tensors_) {
            std::string content(static_cast<size_t>(named.tensor.bytes()), '\0');
            for (char& byte : content) byte = static_cast<char>(engine());
            set(named.tensor, content);
        }
        return *this;
    }

    // Tensors of the same names, dtypes and shapes, zero-filled.
    TensorSet blank_copy() const {
        TensorSet copy(backend_);
        for (const auto& named : tensors_) {
            copy.tensors_.push_back(named);
            copy.tensors_.back().tensor.data =
                copy.memory_.emplace_back(backend_, named.tensor.bytes()).data();
        }
        return copy;
    }

    void set(const Tensor& tensor, const std::string& content) {
        backend_.copy_to_device(tensor.data, content.data(), static_cast<int64_t>(content.size()));
        backend_.synchronize();
    }

    std::string content(size_t index) const {
        const Tensor& tensor = tensors_.at(index).tensor;
        std::string bytes(static_cast<size_t>(tensor.bytes()), '\0');
        backend_.copy_to_host(bytes.data(), tensor.data, tensor.bytes());
        return bytes;
    }

    std::vector<std::string> contents() const {
        std::vector<std::string> all;
        for (size_t i = 0; i < tensors_.size(); ++i) all.push_back(content(i));
        return all;
    }

    std::vector<NamedTensor>& tensors() { return tensors_; }

  private:
    Backend& backend_;
    std::deque<DeviceMemory> memory_;
    std::vector<NamedTensor> tensors_;
};

}  // namespace train_qat::test
