#include "model/run/validation.h"

#include <algorithm>
#include <numeric>

#include "model/run/data_set.h"

namespace train_qat {

Validation::Validation(const Options& options, const ModelConfig& config)
    : data_(options.data.validation, validation_loader(options, config)),
      sequences_(std::min(options.validation_sequences, data_.samples_per_epoch())),
      sequence_length_(config.sequence_length) {}

double Validation::loss(Transformer& model, Communicator& communicator) {
    inputs_.resize(static_cast<size_t>(model.batch() * sequence_length_));
    targets_.resize(inputs_.size());
    const int64_t first = first_row(sequences_, communicator.rank(), communicator.size());
    const int64_t end = first_row(sequences_, communicator.rank() + 1, communicator.size());
    data_.seek(first);
    double sum = 0;
    for (int64_t i = first; i < end;) {
        const int64_t count = std::min(model.batch(), end - i);
        data_.next_batch(count, inputs_.data(), targets_.data());
        sum += model.evaluate(inputs_.data(), targets_.data(), count) * static_cast<double>(count);
        i += count;
    }
    const std::vector<double> sums = gather_numbers(communicator, sum);
    return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(sequences_);
}

}  // namespace train_qat
