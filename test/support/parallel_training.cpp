#include "test/support/parallel_training.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "model/optimizer.h"
#include "model/plan/plan.h"

namespace train_qat::test {

namespace {

constexpr int64_t batch = 2;

void collect(RankTrained& trained, Backend& backend, const std::string& name, const float* data,
             const Parameter& parameter, int64_t columns) {
    const ParameterRows& kept = parameter.rows;
    Rows rows{kept.first_element / kept.columns, parameter.whole.rows, columns, {}};
    rows.values.resize(static_cast<size_t>(kept.rows * columns));
    backend.copy_to_host(rows.values.data(), data, std::ssize(rows.values) * 4);
    trained.state[parameter.name + name] = std::move(rows);
}

void collect_state(RankTrained& trained, Backend& backend, const Parameters& parameters) {
    for (const Parameter& p : parameters.all()) {
        const ParameterRows& kept = p.rows;
        collect(trained, backend, "", kept.master, p, kept.columns);
        collect(trained, backend, " first moment", kept.first_moment, p, kept.columns);
        collect(trained, backend, " second moment", kept.second_moment, p, kept.columns);
        if (kept.grid == Grid::none) continue;
        const int64_t groups = kept.columns / kept.group;
        collect(trained, backend, " scale", kept.scale, p, groups);
        collect(trained, backend, " scale first moment", kept.scale_first_moment, p, groups);
        collect(trained, backend, " scale second moment", kept.scale_second_moment, p, groups);
    }
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

RankTrained train_rank(const ParallelCase& c, const ModelConfig& config, Backend& backend,
                       Communicator& communicator) {
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
    RankTrained trained;
    for (int64_t step = 0; step < c.steps; ++step) {
        if (step == c.fp_steps) optimizer.begin_quantization();
        const Traffic before = communicator.traffic();
        for (int64_t micro = 0; micro < c.micro_batches; ++micro) {
            const Sample sample(config, (step * c.micro_batches + micro) * ranks + rank);
            model.train_micro_batch(sample.inputs.data(), sample.targets.data(), micro,
                                    ranks * c.micro_batches,
                                    micro + 1 == c.micro_batches ? &optimizer.data_parallel() : nullptr);
        }
        trained.norms.push_back(optimizer.finish_gradients());
        optimizer.step(1e-3);
        (model.parameters().quantized() ? trained.counted_qat : trained.counted_fp) =
            since(before, communicator.traffic());
        (model.parameters().quantized() ? trained.qat_traffic : trained.fp_traffic) =
            optimizer.data_parallel().step_traffic();
        double loss = 0;
        for (double part : gather_numbers(communicator, model.loss())) loss += part / ranks;
        trained.losses.push_back(loss);
    }
    const Sample sample(config, -1);
    trained.validation_loss = model.evaluate(sample.inputs.data(), sample.targets.data(), batch);
    collect_state(trained, backend, model.parameters());
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

double loss_distance(const RankTrained& a, const RankTrained& b) {
    double largest = 0;
    for (size_t i = 0; i < a.losses.size(); ++i) {
        const double distance = std::abs(a.losses[i] - b.losses[i]) / b.losses[i];
        largest = distance <= largest ? largest : distance;  // NaN counts
    }
    return largest;
}

}  // namespace train_qat::test
