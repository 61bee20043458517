#include "model/evaluation/hellaswag.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/hellaswag.h"
#include "kernels/ranks/agreement.h"
#include "model/units.h"

namespace train_qat {

namespace {

using Clock = std::chrono::steady_clock;

// One completion behind its context.
struct Row {
    std::vector<int32_t> tokens;  // at most T + 1
    int64_t completion = 0;       // tokens of it, the last ones
    double loss = 0;              // their sum

    int64_t positions() const { return static_cast<int64_t>(tokens.size()) - 1; }
};

Row row_of(const HellaswagExample& example, size_t choice, int64_t T) {
    Row row;
    row.tokens = example.context;
    const std::vector<int32_t>& completion = example.completions[choice];
    row.tokens.insert(row.tokens.end(), completion.begin(), completion.end());
    row.completion = static_cast<int64_t>(completion.size());
    if (row.positions() > T) row.tokens.erase(row.tokens.begin(), row.tokens.end() - (T + 1));
    return row;
}

bool is_cut(const HellaswagExample& example, int64_t T) {
    return std::any_of(example.completions.begin(), example.completions.end(), [&](const auto& completion) {
        return static_cast<int64_t>(example.context.size() + completion.size()) > T + 1;
    });
}

std::vector<HellaswagExample> read_examples(const std::string& path, const ModelConfig& config) {
    std::vector<HellaswagExample> examples = read_hellaswag(path, config.vocabulary);
    for (size_t i = 0; i < examples.size(); ++i)
        for (const std::vector<int32_t>& completion : examples[i].completions)
            if (static_cast<int64_t>(completion.size()) > config.sequence_length)
                throw std::runtime_error(path + ": example " + std::to_string(i) + " has a completion of " +
                                         std::to_string(completion.size()) + " tokens, the model reads " +
                                         std::to_string(config.sequence_length));
    return examples;
}

// A line every ten seconds of long work.
class Progress {
  public:
    Progress(std::ostream& console, size_t rows) : console_(console), rows_(rows) {}

    void at(size_t done) {
        const Clock::time_point now = Clock::now();
        if (now - shown_ < std::chrono::seconds(10)) return;
        shown_ = now;
        const double left =
            seconds_since(start_) * static_cast<double>(rows_ - done) / static_cast<double>(done);
        console_ << "  " << format_exact(static_cast<int64_t>(done)) << " of "
                 << format_exact(static_cast<int64_t>(rows_)) << " completions, " << format_duration(left)
                 << " left\n"
                 << std::flush;
    }

  private:
    std::ostream& console_;
    const size_t rows_;
    const Clock::time_point start_ = Clock::now();
    Clock::time_point shown_ = start_;
};

// Sets the losses of `count` <= model.batch() rows. What stands behind a row's tokens cannot change their losses.
void measure(Transformer& model, Row* const* rows, int64_t count) {
    const int64_t longest = (*std::max_element(rows, rows + count, [](const Row* a, const Row* b) {
                                return a->positions() < b->positions();
                            }))->positions();
    constexpr int64_t step = 64;  // few lengths, so that most batches need no new matmuls
    const int64_t positions = std::min((longest + step - 1) / step * step, model.config().sequence_length);
    std::vector<int32_t> inputs(static_cast<size_t>(count * positions), 0), targets(inputs.size(), 0);
    for (int64_t i = 0; i < count; ++i) {
        const std::vector<int32_t>& tokens = rows[i]->tokens;
        std::copy(tokens.begin(), tokens.end() - 1, inputs.begin() + i * positions);
        std::copy(tokens.begin() + 1, tokens.end(), targets.begin() + i * positions);
    }
    std::vector<float> losses(inputs.size());
    model.token_losses(inputs.data(), targets.data(), count, positions, losses.data());
    for (int64_t i = 0; i < count; ++i) {
        const auto end = losses.begin() + i * positions + rows[i]->positions();
        rows[i]->loss = std::accumulate(end - rows[i]->completion, end, 0.0);
    }
}

// Of all rows, four of an example one behind the other; rows of like lengths are measured together.
void measure_all(Transformer& model, std::vector<Row>& rows, std::ostream& console) {
    std::vector<Row*> order;
    for (Row& row : rows) order.push_back(&row);
    std::stable_sort(order.begin(), order.end(),
                     [](const Row* a, const Row* b) { return a->tokens.size() > b->tokens.size(); });
    Progress progress(console, order.size());
    for (size_t done = 0; done < order.size();) {
        const size_t count = std::min(static_cast<size_t>(model.batch()), order.size() - done);
        measure(model, &order[done], static_cast<int64_t>(count));
        done += count;
        progress.at(done);
    }
}

// Of a loss that is no number it can't be told whether it is the least.
void check_losses(const std::vector<HellaswagExample>& examples, int64_t first,
                  const std::vector<Row>& rows) {
    for (size_t at = 0, i = static_cast<size_t>(first); at < rows.size(); ++i)
        for (size_t choice = 0; choice < examples[i].completions.size(); ++choice, ++at)
            if (!std::isfinite(rows[at].loss))
                throw std::runtime_error(
                    "-hellaswag: the loss of completion " + std::to_string(choice) + " of example " +
                    std::to_string(i) + " is " + (std::isnan(rows[at].loss) ? "NaN" : "infinite") +
                    "; the model's weights are damaged, or too large for its arithmetic");
}

struct Counts {
    double by_mean = 0, by_sum = 0;  // right answers
};

Counts count_right(const std::vector<HellaswagExample>& examples, int64_t first,
                   const std::vector<Row>& rows) {
    Counts counts;
    for (size_t at = 0, i = static_cast<size_t>(first); at < rows.size(); ++i) {
        const size_t choices = examples[i].completions.size();
        const auto begin = rows.begin() + static_cast<int64_t>(at),
                   end = begin + static_cast<int64_t>(choices);
        const auto mean = [](const Row& row) { return row.loss / static_cast<double>(row.completion); };
        const auto by_mean =
            std::min_element(begin, end, [&](const Row& a, const Row& b) { return mean(a) < mean(b); });
        const auto by_sum =
            std::min_element(begin, end, [](const Row& a, const Row& b) { return a.loss < b.loss; });
        counts.by_mean += by_mean - begin == examples[i].label;
        counts.by_sum += by_sum - begin == examples[i].label;
        at += choices;
    }
    return counts;
}

Counts right_answers(const std::vector<HellaswagExample>& examples, Transformer& model,
                     Communicator& communicator, std::ostream& console) {
    const auto count = static_cast<int64_t>(examples.size());
    const int64_t first = first_row(count, communicator.rank(), communicator.size());
    const int64_t end = first_row(count, communicator.rank() + 1, communicator.size());
    std::vector<Row> rows;
    for (int64_t i = first; i < end; ++i)
        for (size_t choice = 0; choice < examples[i].completions.size(); ++choice)
            rows.push_back(row_of(examples[i], choice, model.config().sequence_length));
    measure_all(model, rows, console);
    run_together(communicator, [&] { check_losses(examples, first, rows); });
    const Counts mine = count_right(examples, first, rows);
    const std::vector<double> by_mean = gather_numbers(communicator, mine.by_mean);
    const std::vector<double> by_sum = gather_numbers(communicator, mine.by_sum);
    return {std::accumulate(by_mean.begin(), by_mean.end(), 0.0),
            std::accumulate(by_sum.begin(), by_sum.end(), 0.0)};
}

std::string share(double right, size_t examples) {
    const auto n = static_cast<double>(examples);
    const double p = right / n;
    return formatted(" %9.4f +- %6.4f", p, examples > 1 ? std::sqrt(p * (1 - p) / (n - 1)) : 0.0);
}

}  // namespace

void evaluate_hellaswag(const Options& options, TrainedModel& trained, Backend& backend,
                        Communicator& communicator, std::ostream& console) {
    const ModelConfig& config = trained.model->config();
    const std::vector<HellaswagExample> examples =
        run_together(communicator, [&] { return read_examples(options.hellaswag, config); });
    const auto cut = std::count_if(examples.begin(), examples.end(), [&](const HellaswagExample& example) {
        return is_cut(example, config.sequence_length);
    });
    console << "\n"
            << format_exact(static_cast<int64_t>(examples.size())) << " examples of " << options.hellaswag;
    if (cut > 0)
        console << ", " << format_exact(cut)
                << " of them without the begin of their context: the model reads " << config.sequence_length
                << " tokens";
    console << "\n\n"
            << formatted("  %-34s %19s %19s", "weights", "right by mean loss", "by its sum") << "\n";
    for_each_precision(trained, backend, [&](const std::string& weights) {
        const Counts right = right_answers(examples, *trained.model, communicator, console);
        console << formatted("  %-34s", weights.c_str()) << share(right.by_mean, examples.size())
                << share(right.by_sum, examples.size()) << "\n"
                << std::flush;
    });
}

}  // namespace train_qat
