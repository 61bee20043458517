// Tensors divided among ranks in different ways, for tests of files that many ranks write and read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/device_memory.h"
#include "kernels/ranks/communicator.h"
#include "model/storage/named_tensor.h"

namespace train_qat::test {

// A tensor as it stands in the file.
struct WholeTensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    std::string bytes = "";

    int64_t rows() const { return shape.size() > 1 ? shape[0] : 1; }
    int64_t row_bytes() const {
        int64_t product = size_of(dtype);
        for (size_t i = shape.size() > 1 ? 1 : 0; i < shape.size(); ++i) product *= shape[i];
        return product;
    }
};

// `shapes` with random bytes.
inline std::vector<WholeTensor> with_random_bytes(std::vector<WholeTensor> tensors, uint32_t seed) {
    std::mt19937 engine(seed);
    for (WholeTensor& tensor : tensors) {
        tensor.bytes.resize(static_cast<size_t>(tensor.rows() * tensor.row_bytes()));
        for (char& byte : tensor.bytes) byte = static_cast<char>(engine());
    }
    return tensors;
}

// [first, end) of each rank. seed 0: as evenly as training divides them; otherwise anyhow, with ranks that
// get nothing and rows that are not in the order of ranks.
inline std::vector<std::pair<int64_t, int64_t>> divide(int64_t rows, int ranks, uint32_t seed) {
    std::vector<std::pair<int64_t, int64_t>> parts;
    std::mt19937 engine(seed);
    std::vector<int64_t> cuts = {0, rows};
    for (int rank = 1; rank < ranks; ++rank)
        cuts.push_back(seed == 0 ? first_row(rows, rank, ranks)
                                 : static_cast<int64_t>(engine() % (rows + 1)));
    std::sort(cuts.begin(), cuts.end());
    for (int rank = 0; rank < ranks; ++rank) parts.emplace_back(cuts[rank], cuts[rank + 1]);
    if (seed != 0) std::shuffle(parts.begin(), parts.end(), engine);
    return parts;
}

// One rank's part of tensors, in the memory of its backend, with a guard behind each.
class DividedSet {
  public:
    static constexpr uint32_t not_divided = UINT32_MAX;

    DividedSet(Backend& backend, const std::vector<WholeTensor>& tensors, const Communicator& communicator,
               uint32_t seed)
        : backend_(backend) {
        for (const WholeTensor& whole : tensors) {
            const auto [first, end] =
                seed == not_divided
                    ? std::pair<int64_t, int64_t>(0, whole.rows())
                    : divide(whole.rows(), communicator.size(), seed == 0 ? 0 : seed++)[communicator.rank()];
            add(whole, first, end - first, seed != not_divided);
        }
    }

    std::vector<NamedTensor>& tensors() { return tensors_; }

    // Other bytes everywhere, also in the guards.
    void poison() {
        for (DeviceMemory& memory : memory_) {
            const std::string bytes(static_cast<size_t>(memory.bytes()), poison_byte);
            backend_.copy_to_device(memory.data(), bytes.data(), memory.bytes());
        }
        backend_.synchronize();
    }

    // Whether the memory is poisoned but for the rows of this rank, which are those of `tensors`.
    bool holds(const std::vector<WholeTensor>& tensors) {
        bool same = true;
        for (size_t i = 0; i < tensors.size(); ++i) {
            const std::string own = tensors[i].bytes.substr(slices_[i].first, slices_[i].second);
            std::string found(static_cast<size_t>(memory_[i].bytes()), '\0');
            backend_.copy_to_host(found.data(), memory_[i].data(), memory_[i].bytes());
            same = same && found == own + std::string(guard_bytes, poison_byte);
        }
        return same;
    }

  private:
    static constexpr size_t guard_bytes = 64;
    static constexpr char poison_byte = '\x5a';

    void add(const WholeTensor& whole, int64_t first, int64_t count, bool divided) {
        const size_t bytes = static_cast<size_t>(count * whole.row_bytes());
        slices_.emplace_back(static_cast<size_t>(first * whole.row_bytes()), bytes);
        DeviceMemory& memory = memory_.emplace_back(backend_, static_cast<int64_t>(bytes + guard_bytes));
        backend_.copy_to_device(memory.data(), whole.bytes.data() + slices_.back().first,
                                static_cast<int64_t>(bytes));
        NamedTensor named{whole.name, Tensor(count > 0 ? memory.data() : nullptr, whole.dtype, {})};
        for (const int64_t extent : whole.shape) named.tensor.shape[named.tensor.rank++] = extent;
        if (divided) {
            named.rows = whole.rows();
            if (whole.shape.size() > 1) {
                named.first_row = first;
                named.tensor.shape[0] = count;
            }
        }
        tensors_.push_back(named);
    }

    Backend& backend_;
    std::deque<DeviceMemory> memory_;
    std::vector<std::pair<size_t, size_t>> slices_;  // first byte and bytes of the whole tensors
    std::vector<NamedTensor> tensors_;
};

}  // namespace train_qat::test
