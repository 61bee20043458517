#include "model/run/validation.h"

#include <algorithm>
#include <numeric>

#include "model/job/data_set.h"
#include "model/job/stop_signal.h"

namespace train_qat {

Validation::Validation(const Options& options, const ModelConfig& config)
    : data_(options.data.validation, validation_loader(options, config)),
      sequences_(std::min(options.validation_sequences, data_.samples_per_epoch())),
      sequence_length_(config.sequence_length) {}

namespace {

bool anyone_stops(Communicator& communicator) {
    const std::vector<double> stops = gather_numbers(communicator, stop_requested() ? 1.0 : 0.0);
    return std::find(stops.begin(), stops.end(), 1.0) != stops.end();
}

}  // namespace

double Validation::loss(Transformer& model, Communicator& communicator) {
    return *measure(model, communicator, false);
}

std::optional<double> Validation::loss_unless_stopped(Transformer& model, Communicator& communicator) {
    return measure(model, communicator, true);
}

std::optional<double> Validation::measure(Transformer& model, Communicator& communicator, bool may_stop) {
    inputs_.resize(static_cast<size_t>(model.batch() * sequence_length_));
    targets_.resize(inputs_.size());
    const int64_t first = first_row(sequences_, communicator.rank(), communicator.size());
    const int64_t end = first_row(sequences_, communicator.rank() + 1, communicator.size());
    data_.seek(first);
    double sum = 0;
    // Some ranks have a sequence less than others, but all ask one another equally often.
    const int64_t most = (sequences_ + communicator.size() - 1) / communicator.size();
    int64_t i = first;
    for (int64_t begun = 0; begun < most; begun += model.batch()) {
        if (may_stop && anyone_stops(communicator)) return std::nullopt;
        const int64_t count = std::min(model.batch(), end - i);
        if (count == 0) continue;
        data_.next_batch(count, inputs_.data(), targets_.data());
        sum += model.evaluate(inputs_.data(), targets_.data(), count) * static_cast<double>(count);
        i += count;
    }
    const std::vector<double> sums = gather_numbers(communicator, sum);
    return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(sequences_);
}

}  // namespace train_qat
