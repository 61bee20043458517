// What the implementations of Communicator share: checks, counts, and what is made of other calls.
#include "kernels/ranks/communicator.h"

#include <algorithm>
#include <cstring>

namespace train_qat {

namespace {

void check_arrays(const char* operation, std::span<const RankRows> arrays, int64_t element_bytes) {
    for (const RankRows& array : arrays)
        if (array.data == nullptr || array.rows < 0 || array.row_bytes < 0 ||
            array.row_bytes % element_bytes != 0)
            throw std::logic_error(std::string(operation) + ": an array without memory or of a wrong size");
}

int64_t own_rows(const RankRows& array, int rank, int size) {
    return first_row(array.rows, rank + 1, size) - first_row(array.rows, rank, size);
}

}  // namespace

// To every other rank what belongs to it.
int64_t reduce_scatter_bytes(std::span<const RankRows> arrays, int rank, int size) {
    int64_t bytes = 0;
    for (const RankRows& array : arrays)
        bytes += (array.rows - own_rows(array, rank, size)) * array.row_bytes;
    return bytes;
}

// The own rows to every other rank.
int64_t all_gather_bytes(std::span<const RankRows> arrays, int rank, int size) {
    int64_t bytes = 0;
    for (const RankRows& array : arrays) bytes += own_rows(array, rank, size) * array.row_bytes * (size - 1);
    return bytes;
}

void Communicator::reduce_scatter(std::span<const RankRows> arrays) {
    check_arrays("reduce_scatter", arrays, sizeof(float));
    traffic_.reduce_scatter += reduce_scatter_bytes(arrays, rank_, size_);
    start_reduce_scatter(arrays);
}

void Communicator::all_gather(std::span<const RankRows> arrays) {
    check_arrays("all_gather", arrays, 1);
    traffic_.all_gather += all_gather_bytes(arrays, rank_, size_);
    start_all_gather(arrays);
}

void Communicator::all_reduce(const Tensor& values) {
    if (values.dtype != DType::float32) throw std::logic_error("all_reduce: needs float32");
    const RankRows elements{values.data, values.elements(), sizeof(float)};
    reduce_scatter({&elements, 1});
    all_gather({&elements, 1});
}

void Communicator::broadcast(void* data, int64_t bytes, int root) {
    if (data == nullptr || bytes < 0 || root < 0 || root >= size_)
        throw std::logic_error("broadcast: no memory, or a root that is no rank");
    if (rank_ == root) traffic_.broadcast += bytes * (size_ - 1);
    start_broadcast(data, bytes, root);
}

void Communicator::wait() {
    order_after();
}

void Communicator::gather_on_host(void* data, int64_t bytes) {
    if (data == nullptr || bytes < 0) throw std::logic_error("gather_on_host: no memory");
    gather_host_rows(data, bytes);
}

void Communicator::barrier() {
    std::vector<char> row(static_cast<size_t>(size_));
    gather_on_host(row.data(), 1);
}

std::vector<double> gather_numbers(Communicator& communicator, double mine) {
    std::vector<double> numbers(static_cast<size_t>(communicator.size()));
    numbers[static_cast<size_t>(communicator.rank())] = mine;
    communicator.gather_on_host(numbers.data(), sizeof(double));
    return numbers;
}

std::vector<std::string> gather_texts(Communicator& communicator, const std::string& mine) {
    constexpr size_t width = 1001;  // with a final zero
    std::vector<char> rows(width * static_cast<size_t>(communicator.size()));
    std::memcpy(&rows[width * static_cast<size_t>(communicator.rank())], mine.data(),
                std::min(mine.size(), width - 1));
    communicator.gather_on_host(rows.data(), width);
    std::vector<std::string> texts;
    for (size_t begin = 0; begin < rows.size(); begin += width) texts.emplace_back(&rows[begin]);
    return texts;
}

}  // namespace train_qat
