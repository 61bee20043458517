// Training on several ranks against the same training on one: ranks as threads, each with a backend of its
// own.
#include <map>
#include <mutex>

#include "model/data_parallel.h"
#include "model/optimizer.h"
#include "model/schedule.h"
#include "test/catch.h"
#include "test/device.h"
#include "test/thread_communicator.h"
#include "test/tiny_model.h"

namespace train_qat::test {

namespace {

struct Case {
    double bits = 4;
    int64_t group = 0;
    DType dtype = DType::float32;
    int ranks = 1;
    int zero = 1;
    int64_t micro_batches = 1;  // of a rank
    int64_t steps = 20, fp_steps = 10;
};

std::string text_of(const Case& c) {
    return std::to_string(c.bits) + " bits, group " + std::to_string(c.group) + ", " + name_of(c.dtype) +
           ", " + std::to_string(c.ranks) + " ranks x " + std::to_string(c.micro_batches) + ", zero " +
           std::to_string(c.zero);
}

struct Trained {
    std::vector<double> losses, norms;
    // By name: masters, moments and scales, put together from all ranks.
    std::map<std::string, std::vector<float>> state;
    std::vector<double> rank_losses;  // of a validation sample, on each rank
};

// Adds what this rank keeps of an array of `whole` rows.
void collect(Trained& trained, Backend& backend, const std::string& name, const float* data,
             int64_t row_elements, const ParameterRows& kept, int64_t whole_rows) {
    std::vector<float>& all = trained.state[name];
    all.resize(static_cast<size_t>(whole_rows * row_elements));
    const int64_t first = kept.first_element / kept.columns;
    if (kept.rows > 0)
        backend.copy_to_host(&all[first * row_elements], data,
                             kept.rows * row_elements * static_cast<int64_t>(sizeof(float)));
}

void collect_state(Trained& trained, Backend& backend, const Parameters& parameters) {
    for (const Parameter& p : parameters.all()) {
        const ParameterRows& kept = p.rows;
        const auto matrix = [&](const char* what, const float* data) {
            collect(trained, backend, p.name + what, data, kept.columns, kept, p.whole.rows);
        };
        matrix("", kept.master);
        matrix(" first moment", kept.first_moment);
        matrix(" second moment", kept.second_moment);
        if (kept.grid == Grid::none) continue;
        const auto scales = [&](const char* what, const float* data) {
            collect(trained, backend, p.name + what, data, kept.columns / kept.group, kept, p.whole.rows);
        };
        scales(" scale", kept.scale);
        scales(" scale first moment", kept.scale_first_moment);
        scales(" scale second moment", kept.scale_second_moment);
    }
}

// A model with larger weights than a new one's, so that every gradient counts: the rows of this rank.
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

Trained train(const Case& c, const ModelConfig& config) {
    constexpr int64_t batch = 2;
    Trained trained;
    trained.rank_losses.resize(static_cast<size_t>(c.ranks));
    std::mutex mutex;
    run_ranks(c.ranks, [&](Communicator& communicator) {
        const std::unique_ptr<Backend> backend = make_cpu_backend(1);
        const StateShard shard = c.zero == 1 ? StateShard{communicator.rank(), c.ranks} : StateShard{};
        QuantizationConfig quantization;
        quantization.bits = c.bits;
        quantization.group = c.group;
        Transformer model(*backend, config, quantization, c.dtype, batch, shard);
        model.allocate();
        Optimizer optimizer(*backend, model.parameters(), {}, communicator);
        model.parameters().initialize(*backend, 3);
        enlarge(*backend, model.parameters());
        optimizer.quantize();
        const int64_t T = config.sequence_length, total = c.ranks * c.micro_batches;
        std::vector<int32_t> inputs(static_cast<size_t>(batch * T)), targets(inputs.size());
        const auto read = [&](int64_t number) {
            Random random(1000 + number);
            for (size_t i = 0; i < inputs.size(); ++i) {
                inputs[i] = static_cast<int32_t>(random.integer(0, config.vocabulary - 1));
                targets[i] = (inputs[i] * 7 + 3) % static_cast<int32_t>(config.vocabulary);
            }
        };
        for (int64_t step = 0; step < c.steps; ++step) {
            if (step == c.fp_steps) optimizer.begin_quantization();
            for (int64_t micro = 0; micro < c.micro_batches; ++micro) {
                read((step * c.micro_batches + micro) * c.ranks + communicator.rank());
                const bool last = micro + 1 == c.micro_batches;
                model.train_micro_batch(inputs.data(), targets.data(), micro, total,
                                        last ? &optimizer.data_parallel() : nullptr);
            }
            double loss = 0;
            for (double part : gather_numbers(communicator, model.loss())) loss += part / c.ranks;
            const double norm = optimizer.finish_gradients();
            optimizer.step(1e-3);
            const std::lock_guard lock(mutex);
            if (communicator.rank() == 0) {
                trained.losses.push_back(loss);
                trained.norms.push_back(norm);
            }
        }
        read(-1);
        const std::lock_guard lock(mutex);
        trained.rank_losses[communicator.rank()] = model.evaluate(inputs.data(), targets.data(), batch);
        collect_state(trained, *backend, model.parameters());
    });
    return trained;
}

std::string difference(const Trained& a, const Trained& b) {
    if (a.losses != b.losses) return "losses differ";
    if (a.norms != b.norms) return "norms differ";
    if (a.rank_losses[0] != b.rank_losses[0]) return "validation losses differ";
    for (const auto& [name, values] : a.state)
        if (values != b.state.at(name)) return name + " differs";
    return a.state.size() == b.state.size() ? "" : "not the same tensors";
}

// The largest relative distance of losses.
double distance(const Trained& a, const Trained& b) {
    double largest = 0;
    for (size_t i = 0; i < a.losses.size(); ++i)
        largest = std::max(largest, std::abs(a.losses[i] - b.losses[i]) / b.losses[i]);
    return largest;
}

}  // namespace

TEST_CASE("ranks train like one process on the same global batch", "[data_parallel]") {
    for (double bits : {1.0, 2.0, 4.0, 8.0})
        for (int64_t group : {0, 8}) {
            Case alone{bits, group};
            alone.micro_batches = 12;
            const Trained expected = train(alone, tiny_config());
            REQUIRE(expected.losses.back() < expected.losses.front());
            for (int ranks : {2, 3, 4}) {
                Case c = alone;
                c.ranks = ranks;
                c.micro_batches = 12 / ranks;
                INFO(text_of(c));
                const Trained trained = train(c, tiny_config());
                CHECK(distance(trained, expected) < 1e-6);
                for (double loss : trained.rank_losses) CHECK(loss == trained.rank_losses[0]);
            }
        }
}

TEST_CASE("dividing the optimizer's state changes no bit", "[data_parallel]") {
    ModelConfig config = tiny_config();
    config.layers = 1;
    for (const Case& drawn : {Case{1.58, 0, DType::float32, 2}, Case{3, 8, DType::float32, 3},
                              Case{5, 0, DType::bfloat16, 4}, Case{2, 8, DType::bfloat16, 5}}) {
        Case c = drawn;
        c.steps = 8;
        c.fp_steps = 4;
        INFO(text_of(c));
        const Trained sharded = train(c, config);
        CHECK(difference(sharded, train(c, config)) == "");
        c.zero = 0;
        CHECK(difference(sharded, train(c, config)) == "");
    }
}

}  // namespace train_qat::test
