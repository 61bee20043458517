#include "test/support/parallel_training.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <sstream>

#include "model/optimizer.h"
#include "model/plan/plan.h"

namespace train_qat::test {

namespace {

constexpr int64_t batch = 2;

// Calls visit(name, device memory, parameter, columns) for every array of an optimizer's state.
template <typename Visit>
void for_each_array(const Parameters& parameters, Visit&& visit) {
    for (const Parameter& p : parameters.all()) {
        const ParameterRows& kept = p.rows;
        visit(p.name, kept.master, p, kept.columns);
        visit(p.name + " first moment", kept.first_moment, p, kept.columns);
        visit(p.name + " second moment", kept.second_moment, p, kept.columns);
        if (kept.grid == Grid::none) continue;
        const int64_t groups = kept.columns / kept.group;
        visit(p.name + " scale", kept.scale, p, groups);
        visit(p.name + " scale first moment", kept.scale_first_moment, p, groups);
        visit(p.name + " scale second moment", kept.scale_second_moment, p, groups);
    }
}

Rows read(Backend& backend, const float* data, const Parameter& parameter, int64_t columns) {
    const ParameterRows& kept = parameter.rows;
    Rows rows{kept.first_element / kept.columns, parameter.whole.rows, columns, {}};
    rows.values.resize(static_cast<size_t>(kept.rows * columns));
    backend.copy_to_host(rows.values.data(), data, std::ssize(rows.values) * 4);
    return rows;
}

Arrays read_state(Backend& backend, const Parameters& parameters) {
    Arrays arrays;
    for_each_array(parameters, [&](const std::string& name, const float* data, const Parameter& p,
                                   int64_t columns) { arrays[name] = read(backend, data, p, columns); });
    return arrays;
}

Arrays read_gradients(Backend& backend, const Parameters& parameters) {
    Arrays arrays;
    for (const Parameter& p : parameters.all()) {
        arrays[p.name] = read(backend, static_cast<const float*>(p.rows.gradient), p, p.rows.columns);
        if (p.rows.grid != Grid::none)
            arrays[p.name + " scale"] =
                read(backend, p.rows.scale_gradient, p, p.rows.columns / p.rows.group);
    }
    return arrays;
}

// The rows that this rank keeps, out of all rows.
void write_state(Backend& backend, const Parameters& parameters, const Arrays& whole) {
    for_each_array(
        parameters, [&](const std::string& name, float* data, const Parameter& p, int64_t columns) {
            const int64_t first = p.rows.first_element / p.rows.columns * columns;
            backend.copy_to_device(data, whole.at(name).values.data() + first, p.rows.rows * columns * 4);
        });
    backend.synchronize();
}

// Larger weights than a new model's, so that every gradient counts.
void enlarge(Backend& backend, Parameters& parameters) {
    for (const Parameter& p : parameters.all()) {
        if (p.is_vector || p.rows.rows == 0) continue;
        std::vector<float> values(static_cast<size_t>(p.rows.elements()));
        backend.copy_to_host(values.data(), p.rows.master, std::ssize(values) * 4);
        for (float& value : values) value *= 8;
        backend.copy_to_device(p.rows.master, values.data(), std::ssize(values) * 4);
        backend.synchronize();
    }
}

struct Sample {
    Sample(const ModelConfig& config, int64_t number) {
        Random random(1000 + static_cast<uint64_t>(number));
        for (int64_t i = 0; i < batch * config.sequence_length; ++i) {
            inputs.push_back(static_cast<int32_t>(random.integer(0, config.vocabulary - 1)));
            targets.push_back((inputs.back() * 7 + 3) % static_cast<int32_t>(config.vocabulary));
        }
    }
    std::vector<int32_t> inputs, targets;
};

Traffic since(const Traffic& before, const Traffic& now) {
    return {now.reduce_scatter - before.reduce_scatter, now.all_gather - before.all_gather,
            now.broadcast - before.broadcast};
}

}  // namespace

std::string text_of(const ParallelCase& c, int ranks) {
    return format_bits(c.bits) + " bits, group " + std::to_string(c.group) + ", " + name_of(c.dtype) + ", " +
           std::to_string(ranks) + " ranks x " + std::to_string(c.micro_batches) + ", zero " +
           std::to_string(c.zero);
}

int64_t tokens_of_step(const ParallelCase& c, const ModelConfig& config) {
    return c.micro_batches * batch * config.sequence_length;
}

RankTrained train_rank(const ParallelCase& c, const ModelConfig& config, Backend& backend,
                       Communicator& communicator, const RankTrained* leader) {
    const int rank = communicator.rank(), ranks = communicator.size();
    QuantizationConfig quantization;
    quantization.bits = c.bits;
    quantization.group = c.group;
    Transformer model(backend, config, quantization, c.dtype, batch,
                      c.zero == 1 ? StateShard{rank, ranks} : StateShard{});
    model.allocate();
    Optimizer optimizer(backend, model.parameters(), {}, communicator);
    model.parameters().initialize(backend, 3);
    enlarge(backend, model.parameters());
    optimizer.quantize();
    const auto follow = [&](const Arrays& state) {
        write_state(backend, model.parameters(), state);
        optimizer.quantize();
    };
    RankTrained trained;
    for (int64_t step = 0; step < c.steps; ++step) {
        if (step == c.fp_steps) optimizer.begin_quantization();
        RankTrained::Step& record = trained.steps.emplace_back();
        record.before = read_state(backend, model.parameters());
        if (leader != nullptr) follow(leader->steps[step].before);
        const Traffic before = communicator.traffic();
        for (int64_t micro = 0; micro < c.micro_batches; ++micro) {
            const Sample sample(config, (step * c.micro_batches + micro) * ranks + rank);
            model.train_micro_batch(sample.inputs.data(), sample.targets.data(), micro,
                                    ranks * c.micro_batches,
                                    micro + 1 == c.micro_batches ? &optimizer.data_parallel() : nullptr);
        }
        trained.norms.push_back(optimizer.finish_gradients());
        record.gradients = read_gradients(backend, model.parameters());
        optimizer.step(1e-3);
        (model.parameters().quantized() ? trained.counted_qat : trained.counted_fp) =
            since(before, communicator.traffic());
        (model.parameters().quantized() ? trained.qat_traffic : trained.fp_traffic) =
            optimizer.data_parallel().step_traffic();
        double loss = 0;
        for (double part : gather_numbers(communicator, model.loss())) loss += part / ranks;
        trained.losses.push_back(loss);
    }
    trained.state = read_state(backend, model.parameters());
    if (leader != nullptr) follow(leader->state);
    const Sample sample(config, -1);
    trained.validation_loss = model.evaluate(sample.inputs.data(), sample.targets.data(), batch);
    return trained;
}

std::string difference(const RankTrained& a, const RankTrained& b) {
    if (a.losses != b.losses) return "losses differ";
    if (a.norms != b.norms) return "norms differ";
    if (a.validation_loss != b.validation_loss) return "validation losses differ";
    if (a.state.size() != b.state.size()) return "not the same arrays";
    for (const auto& [name, rows] : a.state) {
        const Rows& others = b.state.at(name);
        if (rows.whole != others.whole || rows.columns != others.columns)
            return name + ": not the same shape";
        const int64_t first = std::max(rows.first, others.first) * rows.columns;
        const int64_t end = std::min(rows.first * rows.columns + std::ssize(rows.values),
                                     others.first * rows.columns + std::ssize(others.values));
        for (int64_t i = first; i < end; ++i)
            if (rows.values[i - rows.first * rows.columns] != others.values[i - others.first * rows.columns])
                return name + " differs";
    }
    return "";
}

namespace {

// ||a - b||, ||b||, and how many elements, of the rows that both have; `from`: b's rows relative to it.
struct Distance {
    double difference = 0, size = 0;
    int64_t elements = 0;
    void add(const Rows& a, const Rows& b, const Rows* from = nullptr) {
        const int64_t first = a.first * a.columns;
        for (int64_t i = 0; i < std::ssize(a.values); ++i) {
            const double reference = b.values[first + i],
                         origin = from != nullptr ? from->values[first + i] : 0.0;
            difference += (a.values[i] - reference) * (a.values[i] - reference);
            size += (reference - origin) * (reference - origin);
        }
        elements += std::ssize(a.values);
    }
    // "" or that the distance is over `bound` times the size; NaN counts.
    std::string over(double bound, const std::string& what) const {
        if (std::sqrt(difference) <= bound * std::sqrt(size)) return "";
        std::ostringstream text;
        text << what << ": " << std::sqrt(difference / size) << " apart, bound " << bound;
        return text.str();
    }
};

bool is_moment(const std::string& name) {
    return name.ends_with(" moment");
}

}  // namespace

// Both compute the same terms to the bit and add them in different orders. Terms of one sign, those of a loss, leave an
// error of float32_sum. A gradient's terms have random signs: their absolute values add up to sqrt(terms) times the sum,
// and so the error is at most about terms * 2^-24 of it. (A scale's gradient adds the errors of a row once more.)
// AdamW divides a gradient by its own size: elements smaller than the error may take the opposite step, twice as long.
// Of normally distributed ones that is a share as large as the error, here at least one: the distance is the root of it.
std::string departure(const RankTrained& follower, const RankTrained& leader, int64_t tokens) {
    const double of_sum = float32_sum(tokens);
    for (size_t step = 0; step < leader.steps.size(); ++step) {
        const std::string at = "step " + std::to_string(step) + ", ";
        const auto number = [&](double a, double b, double bound, const char* what) {
            return std::abs(a - b) <= bound * std::abs(b)
                       ? ""
                       : at + what + " " + std::to_string(a / b - 1) + " apart";
        };
        const RankTrained::Step &mine = follower.steps[step], &theirs = leader.steps[step];
        const bool last = step + 1 == leader.steps.size();
        const Arrays& my_end = last ? follower.state : follower.steps[step + 1].before;
        const Arrays& their_end = last ? leader.state : leader.steps[step + 1].before;
        int64_t terms = tokens;
        std::string wrong = number(follower.losses[step], leader.losses[step], of_sum, "loss");
        for (const auto& [name, gradient] : mine.gradients) {
            Distance distance;
            distance.add(gradient, theirs.gradients.at(name));
            const bool of_scale = name.ends_with(" scale");
            const int64_t row = of_scale ? mine.gradients.at(name.substr(0, name.size() - 6)).columns : 1;
            if (wrong.empty())
                wrong =
                    distance.over(static_cast<double>(tokens * row) * 0x1p-24, at + "gradient of " + name);
            terms = std::max(terms, tokens * row);
        }
        const double of_gradients = static_cast<double>(terms) * 0x1p-24;
        if (wrong.empty()) wrong = number(follower.norms[step], leader.norms[step], of_gradients, "norm");
        for (const bool scales : {false, true}) {
            Distance moved;
            for (const auto& [name, rows] : my_end)
                if (!is_moment(name) && name.ends_with(" scale") == scales && theirs.before.contains(name))
                    moved.add(rows, their_end.at(name), &theirs.before.at(name));
            const double share =
                std::max(of_gradients, 1.0 / static_cast<double>(std::max<int64_t>(moved.elements, 1)));
            if (wrong.empty())
                wrong = moved.over(std::sqrt(4 * share), at + (scales ? "scales" : "weights") + " after it");
        }
        if (!wrong.empty()) return wrong;
    }
    return follower.validation_loss == leader.validation_loss ? "" : "validation losses differ";
}

}  // namespace train_qat::test
