#include "model/storage/named_tensor.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <utility>

namespace train_qat {
namespace {

bool is_part(const NamedTensor& named) {
    const Tensor& tensor = named.tensor;
    if (tensor.rank == 1) return named.rows == 1 && named.first_row == 0;
    const int64_t held = tensor.shape[0];
    return named.first_row >= 0 && held >= 0 && held <= named.rows && named.first_row <= named.rows - held &&
           (held == 0 || !tensor.empty());
}

bool has_elements(const NamedTensor& named) {
    const std::vector<int64_t> shape = whole_shape(named);
    return !shape.empty() &&
           std::all_of(shape.begin(), shape.end(), [](int64_t extent) { return extent > 0; });
}

}  // namespace

bool any_divided(std::span<const NamedTensor> tensors) {
    return std::any_of(tensors.begin(), tensors.end(), [](const auto& named) { return named.is_divided(); });
}

std::vector<int64_t> whole_shape(const NamedTensor& named) {
    const Tensor& tensor = named.tensor;
    std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.rank);
    if (named.is_divided() && tensor.rank > 1) shape[0] = named.rows;
    return shape;
}

int64_t whole_bytes(const NamedTensor& named) {
    Tensor whole = named.tensor;
    if (named.is_divided() && whole.rank > 1) whole.shape[0] = named.rows;
    return whole.bytes();
}

RowRange rows_held(const NamedTensor& named) {
    const Tensor& tensor = named.tensor;
    if (tensor.rank == 1) return {0, tensor.empty() ? 0 : 1, tensor.bytes()};
    Tensor row = tensor;
    row.shape[0] = 1;
    return {named.first_row, tensor.shape[0], row.bytes()};
}

RowRange rows_answered_for(const NamedTensor& named, int rank) {
    RowRange range = rows_held(named);
    if (!named.is_divided() && rank != 0) range.count = 0;
    return range;
}

void check_named_tensors(const char* caller, std::span<const NamedTensor> tensors) {
    std::set<std::string> names = {"__metadata__"};
    for (const NamedTensor& named : tensors) {
        const auto fail = [&](const char* message) {
            throw std::logic_error(std::string(caller) + ": " + message + ": " + named.name);
        };
        if (!names.insert(named.name).second) fail("name used twice");
        if (!has_elements(named) || (!named.is_divided() && named.tensor.empty())) fail("empty tensor");
        if (named.is_divided() ? !is_part(named) : named.first_row != 0) fail("no part of its rows");
    }
}

void check_division(const char* caller, Communicator& communicator, std::span<const NamedTensor> tensors) {
    std::vector<const NamedTensor*> sorted;
    for (const NamedTensor& named : tensors) sorted.push_back(&named);
    std::sort(sorted.begin(), sorted.end(), [](auto* left, auto* right) { return left->name < right->name; });

    using Part = std::pair<int64_t, int64_t>;  // first row, number of rows
    const size_t count = sorted.size(), ranks = static_cast<size_t>(communicator.size());
    std::vector<Part> parts(ranks * count + 1);  // (ranks, count); never without memory
    for (size_t i = 0; i < count; ++i) {
        const RowRange range = rows_answered_for(*sorted[i], communicator.rank());
        parts[static_cast<size_t>(communicator.rank()) * count + i] = {range.first, range.count};
    }
    communicator.gather_on_host(parts.data(), static_cast<int64_t>(count * sizeof(Part)));

    for (size_t i = 0; i < count; ++i) {
        std::vector<Part> held;
        for (size_t rank = 0; rank < ranks; ++rank)
            if (const Part& part = parts[rank * count + i]; part.second > 0) held.push_back(part);
        std::sort(held.begin(), held.end());
        int64_t end = 0;
        bool fits = true;
        for (const auto& [first, rows] : held) {
            fits = fits && first == end;
            end += rows;
        }
        const bool vector = sorted[i]->tensor.rank == 1;
        if (!fits || end != (vector ? 1 : whole_shape(*sorted[i])[0]))
            throw std::logic_error(std::string(caller) + ": the ranks do not hold every row once of " +
                                   sorted[i]->name);
    }
}

}  // namespace train_qat
