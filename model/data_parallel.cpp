#include "model/data_parallel.h"

#include <stdexcept>

namespace train_qat {

namespace {

constexpr auto float_bytes = static_cast<int64_t>(sizeof(float));

// A matrix of floats; its rows belong to the ranks that own the rows of its parameter.
RankRows float_rows(float* data, int64_t rows, int64_t columns) {
    return {data, rows, columns * float_bytes};
}

int64_t groups_of(const ParameterRows& p) {
    return p.columns / p.group;
}

}  // namespace

DataParallel::DataParallel(Backend& backend, Parameters& parameters, Communicator& communicator)
    : backend_(backend), parameters_(parameters), communicator_(communicator) {
    const StateShard& shard = parameters.shard();
    if (shard.parts > 1 && (shard.part != communicator.rank() || shard.parts != communicator.size()))
        throw std::logic_error("DataParallel: the parameters' shard is not that of this rank");
}

std::vector<RankRows> DataParallel::gradients_of(int64_t layer) const {
    std::vector<RankRows> gradients;
    for (const Parameter& parameter : parameters_.all())
        if (parameter.layer == layer)
            gradients.push_back(
                float_rows(parameter.whole.gradient, parameter.whole.rows, parameter.whole.columns));
    return gradients;
}

void DataParallel::sum_gradients(int64_t layer) {
    if (!alone()) communicator_.reduce_scatter(gradients_of(layer));
}

std::vector<size_t> DataParallel::owned_parameters(int rank) const {
    std::vector<size_t> owned;
    for (size_t i = 0; i < parameters_.all().size(); ++i) {
        const int64_t rows = parameters_.all()[i].whole.rows;
        if (first_row(rows, rank, communicator_.size()) < first_row(rows, rank + 1, communicator_.size()))
            owned.push_back(i);
    }
    return owned;
}

std::vector<ParameterRows> DataParallel::own_rows() {
    communicator_.wait();
    if (alone() || sharded()) return parameters_.rows();
    const int rank = communicator_.rank(), size = communicator_.size();
    std::vector<ParameterRows> rows;
    for (size_t i : owned_parameters(rank)) {
        const ParameterRows& whole = parameters_.all()[i].whole;
        const int64_t first = first_row(whole.rows, rank, size);
        rows.push_back(rows_of(whole, first, first_row(whole.rows, rank + 1, size) - first));
    }
    return rows;
}

std::vector<RankRows> DataParallel::finished_gradients() const {
    std::vector<RankRows> gradients;
    for (const Parameter& parameter : parameters_.all()) {
        const ParameterRows& whole = parameter.whole;
        gradients.push_back(float_rows(whole.gradient, whole.rows, whole.columns));
        if (whole.grid != Grid::none)
            gradients.push_back(float_rows(whole.scale_gradient, whole.rows, groups_of(whole)));
    }
    return gradients;
}

void DataParallel::gather_gradients() {
    if (alone() || sharded()) return;
    communicator_.all_gather(finished_gradients());
    communicator_.wait();
}

void DataParallel::find_messages() {
    if (found_ && found_quantized_ == parameters_.quantized()) return;
    matrices_.clear();
    whole_.clear();
    for (size_t i = 0; i < parameters_.all().size(); ++i) {
        if (parameters_.all()[i].is_vector) continue;
        matrices_.push_back(i);
        whole_.push_back(parameters_.all()[i].whole);
    }
    messages_ = backend_.weight_messages(whole_, parameters_.message_buffer());
    found_ = true;
    found_quantized_ = parameters_.quantized();
}

// Messages of matrices, and norms as they are.
std::vector<RankRows> DataParallel::weight_arrays() const {
    std::vector<RankRows> arrays;
    for (size_t m = 0; m < messages_.size(); ++m) {
        const WeightMessage& message = messages_[m];
        arrays.push_back({message.numbers, whole_[m].rows, message.row_bytes});
        if (message.scales != nullptr)
            arrays.push_back(float_rows(message.scales, whole_[m].rows, message.scales_per_row));
    }
    for (const Parameter& parameter : parameters_.all())
        if (parameter.is_vector)
            arrays.push_back(float_rows(parameter.whole.master, 1, parameter.whole.columns));
    return arrays;
}

void DataParallel::gather_weights() {
    if (!sharded()) return;
    find_messages();
    std::vector<ParameterRows> own;
    std::vector<WeightMessage> own_messages;
    for (size_t m = 0; m < messages_.size(); ++m) {
        const ParameterRows& kept = parameters_.all()[matrices_[m]].rows;
        if (kept.rows == 0) continue;
        own.push_back(kept);
        own_messages.push_back(messages_[m]);
    }
    backend_.write_weight_messages({.rows = own, .messages = own_messages});
    communicator_.all_gather(weight_arrays());
    communicator_.wait();
    backend_.read_weight_messages({.parameters = whole_, .messages = messages_});
}

DataParallel::StepTraffic DataParallel::step_traffic() {
    StepTraffic traffic;
    const int rank = communicator_.rank(), size = communicator_.size();
    for (const Parameter& parameter : parameters_.all()) {
        const RankRows gradient =
            float_rows(parameter.whole.gradient, parameter.whole.rows, parameter.whole.columns);
        traffic.gradients += reduce_scatter_bytes({&gradient, 1}, rank, size);
    }
    if (!sharded()) {
        traffic.gradients += all_gather_bytes(finished_gradients(), rank, size);
        return traffic;
    }
    find_messages();
    traffic.weights = all_gather_bytes(weight_arrays(), rank, size);
    for (const Parameter& parameter : parameters_.all()) {
        const ParameterRows& whole = parameter.whole;
        const int64_t element =
            whole.compute != nullptr ? size_of(whole.compute->dtype) : static_cast<int64_t>(sizeof(float));
        const RankRows plain{whole.gradient, whole.rows, whole.columns * element};
        traffic.unpacked_weights += all_gather_bytes({&plain, 1}, rank, size);
    }
    return traffic;
}

}  // namespace train_qat
