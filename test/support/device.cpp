#include "test/support/device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "dev/emulator/emulator.h"
#include "kernels/cpu/levels/levels.h"
#include "kernels/cuda/platform/cuda_options.h"

namespace train_qat::test {

// ---- backends

namespace {

int number_from_environment(const char* name) {
    const char* text = std::getenv(name);
    return text != nullptr ? std::atoi(text) : 0;
}

// TRAIN_QAT_TEST_SCHEDULE: seed of the order in which the emulated device runs threads.
// TRAIN_QAT_TEST_RACES=1: it looks for conflicting accesses, too.
emulator::Settings emulator_settings() {
    emulator::Settings settings;
    settings.schedule_seed = static_cast<uint64_t>(number_from_environment("TRAIN_QAT_TEST_SCHEDULE"));
    settings.check_races = number_from_environment("TRAIN_QAT_TEST_RACES") != 0;
    return settings;
}

// Owns the backends, and makes only those that the environment asks for.
struct Backends {
    Backends() : emulated(emulator_settings()) {
        const char* selection = std::getenv("TRAIN_QAT_TEST_DEVICES");
        const std::string names = selection != nullptr ? selection : "cpu,emulated";
        if (names.find("cpu") != std::string::npos) {
            for (const CpuLevel& level : cpu_levels())
                if (level.runs_here()) add_cpu(level);
        }
        CudaOptions codes, levels;
        codes.qat_gemm = QatGemm::fused;
        levels.qat_gemm = QatGemm::cublaslt;
        if (names.find("emulated") != std::string::npos) {
            add("emulated CUDA, packed codes", "emulated CUDA with codes", make_emulated_cuda_backend(codes));
            // Differs in quantized matmuls only: left out where time is short.
            if (!small_shapes_only())
                add("emulated CUDA, levels", "emulated CUDA with levels", make_emulated_cuda_backend(levels));
        }
        if (names.find("gpu") != std::string::npos) {
            add("CUDA, packed codes", "CUDA with codes", make_cuda_backend(codes));
            add("CUDA, levels", "CUDA with levels", make_cuda_backend(levels));
        }
        if (all.empty()) throw std::runtime_error("TRAIN_QAT_TEST_DEVICES: names none of cpu, emulated, gpu");
    }
    void add_cpu(const CpuLevel& level) {
        for (int threads : {1, 2}) {
            const std::string device = std::string("cpu, ") + level.name;
            add(device + (threads == 1 ? ", 1 thread" : ", 2 threads"), device,
                std::unique_ptr<Backend>(level.make(threads, level.unit)));
        }
    }
    void add(const std::string& name, const std::string& device, std::unique_ptr<Backend> backend) {
        all.push_back({name, device, backend.get()});
        owned.push_back(std::move(backend));
    }
    emulator::SettingsScope emulated;
    std::vector<std::unique_ptr<Backend>> owned;
    std::vector<BackendUnderTest> all;
};

}  // namespace

const std::vector<BackendUnderTest>& backends_under_test() {
    static const Backends backends;
    return backends.all;
}

bool small_shapes_only() {
    return number_from_environment("TRAIN_QAT_TEST_SMALL") != 0;
}

std::vector<BackendUnderTest> backends_under_test(DType compute_type) {
    std::vector<BackendUnderTest> result;
    for (const BackendUnderTest& candidate : backends_under_test())
        if (candidate.backend->supports(compute_type)) result.push_back(candidate);
    return result;
}

std::vector<DType> compute_types() {
    std::vector<DType> types = {DType::float32};
    if (!backends_under_test(DType::bfloat16).empty()) types.push_back(DType::bfloat16);
    return types;
}

// ---- random inputs

Array Random::normals(int64_t count, DType dtype, double deviation) {
    Array values(count);
    for (double& value : values) value = reference::round_to(dtype, normal() * deviation);
    return values;
}

Array Random::scales(int64_t count, double scale) {
    Array values(count);
    for (double& value : values) value = reference::round_to_float16(scale * std::exp2(4 * uniform() - 2));
    return values;
}

Array Random::tokens(int64_t count, int64_t vocabulary) {
    Array values(count);
    for (double& value : values) value = static_cast<double>(integer(0, vocabulary - 1));
    return values;
}

// ---- one run of one operation

static constexpr int64_t guard = 128;
static constexpr unsigned char poison = 0xff;

static std::vector<unsigned char> encoded(const Array& values, DType dtype) {
    std::vector<unsigned char> bytes(values.size() * size_of(dtype));
    for (size_t i = 0; i < values.size(); ++i) {
        uint32_t word;
        if (dtype == DType::int32) {
            const auto integer = static_cast<int32_t>(values[i]);
            std::memcpy(&word, &integer, sizeof word);
        } else {
            const auto narrow = static_cast<float>(values[i]);
            if (!std::isnan(values[i]) && values[i] != reference::round_to(dtype, values[i]))
                throw std::logic_error("test input is not representable in its dtype");
            std::memcpy(&word, &narrow, sizeof word);
            if (dtype == DType::bfloat16) word >>= 16;
        }
        std::memcpy(&bytes[i * size_of(dtype)], &word, size_of(dtype));  // little endian
    }
    return bytes;
}

void* Bench::place(const std::string& name, const std::vector<unsigned char>& content, bool constant) {
    Block block;
    block.name = name;
    block.bytes = static_cast<int64_t>(content.size());
    block.memory = DeviceMemory(backend_, block.bytes + 2 * guard);
    block.constant = constant;
    block.content = content;
    std::vector<unsigned char> image(block.memory.bytes(), poison);
    std::copy(content.begin(), content.end(), image.begin() + guard);
    backend_.copy_to_device(block.memory.data(), image.data(), block.memory.bytes());
    // The copy may be asynchronous, and `image` ends here.
    backend_.synchronize();
    blocks_.push_back(std::move(block));
    return static_cast<char*>(blocks_.back().memory.data()) + guard;
}

static Tensor checked(Tensor tensor, const Array& values) {
    if (tensor.elements() != static_cast<int64_t>(values.size()))
        throw std::logic_error("test tensor has another number of elements than its values");
    return tensor;
}

Tensor Bench::input(const std::string& name, const Array& values, DType dtype,
                    std::initializer_list<int64_t> shape) {
    return checked(Tensor(place(name, encoded(values, dtype), true), dtype, shape), values);
}

Tensor Bench::optional_input(const std::string& name, const Array& values, DType dtype,
                             std::initializer_list<int64_t> shape) {
    return values.empty() ? Tensor() : input(name, values, dtype, shape);
}

Tensor Bench::update(const std::string& name, const Array& values, DType dtype,
                     std::initializer_list<int64_t> shape) {
    return checked(Tensor(place(name, encoded(values, dtype), false), dtype, shape), values);
}

Tensor Bench::output(const std::string& name, DType dtype, std::initializer_list<int64_t> shape) {
    Tensor tensor(nullptr, dtype, shape);
    tensor.data = place(name, std::vector<unsigned char>(tensor.bytes(), poison), false);
    return tensor;
}

void* Bench::workspace(int64_t bytes) {
    return place("workspace", std::vector<unsigned char>(bytes, poison), false);
}

ComputeWeight& Bench::compute_weight(int64_t rows, int64_t columns, DType dtype, bool embedding,
                                     bool scaled) {
    ComputeWeight weight;
    weight.rows = rows;
    weight.columns = columns;
    weight.dtype = dtype;
    weight.embedding = embedding;
    weight.scaled = scaled;
    const int64_t bytes = backend_.compute_weight_bytes(rows, columns, dtype, embedding);
    weight.storage = place("compute weight", std::vector<unsigned char>(bytes, poison), false);
    weight.scale_storage = output("compute weight's scales", DType::float32, {rows}).as<float>();
    weights_.push_back(weight);
    return weights_.back();
}

Array Bench::read(const Tensor& tensor) {
    std::vector<unsigned char> bytes(tensor.bytes());
    backend_.copy_to_host(bytes.data(), tensor.data, tensor.bytes());
    Array values(tensor.elements());
    for (size_t i = 0; i < values.size(); ++i) {
        uint32_t word = 0;
        std::memcpy(&word, &bytes[i * size_of(tensor.dtype)], size_of(tensor.dtype));
        if (tensor.dtype == DType::int32) {
            values[i] = static_cast<int32_t>(word);
            continue;
        }
        if (tensor.dtype == DType::bfloat16) word <<= 16;
        float value;
        std::memcpy(&value, &word, sizeof value);
        values[i] = value;
    }
    return values;
}

std::string Bench::damage() {
    std::string report;
    for (const Block& block : blocks_) {
        std::vector<unsigned char> image(block.memory.bytes());
        backend_.copy_to_host(image.data(), block.memory.data(), block.memory.bytes());
        const auto begin = image.begin() + guard, end = begin + block.bytes;
        const auto is_poison = [](unsigned char byte) { return byte == poison; };
        if (!std::all_of(image.begin(), begin, is_poison))
            report += "memory before " + block.name + " overwritten; ";
        if (!std::all_of(end, image.end(), is_poison))
            report += "memory behind " + block.name + " overwritten; ";
        if (block.constant && !std::equal(begin, end, block.content.begin()))
            report += "input " + block.name + " overwritten; ";
    }
    return report;
}

// ---- parameters

HostParameter random_parameter(Random& random, int64_t rows, int64_t columns, Grid grid, int64_t group) {
    HostParameter host{rows, columns, grid, grid == Grid::none ? 0 : group, {}, {}, {}};
    host.master = random.normals(rows * columns, DType::float32, 0.05);
    host.gradient = random.normals(rows * columns, DType::float32, 0.3);
    if (grid == Grid::none) return host;
    host.scale = reference::initial_scales(grid, rows, columns, host.group, host.master);
    // Smaller than the initial scale, so that weights are clipped at both ends; not yet rounded to float16.
    for (double& s : host.scale) s = static_cast<float>(s * (0.4 + 0.7 * random.uniform()));
    return host;
}

ParameterRows place(Bench& bench, const HostParameter& host, ComputeWeight* compute, int64_t first_row) {
    const int64_t rows = host.rows, columns = host.columns;
    const Array zeros(rows * columns, 0.0);
    const auto placed = [&](const char* name, const Array& values, int64_t width) {
        return bench.update(name, values, DType::float32, {rows, width}).as<float>();
    };
    ParameterRows parameter;
    parameter.rows = rows;
    parameter.columns = columns;
    parameter.master = placed("master", host.master, columns);
    parameter.gradient = placed("gradient", host.gradient.empty() ? zeros : host.gradient, columns);
    parameter.first_moment = placed("first moment", zeros, columns);
    parameter.second_moment = placed("second moment", zeros, columns);
    parameter.compute = compute;
    parameter.first_row = first_row;
    parameter.grid = host.grid;
    parameter.group = host.group;
    if (host.grid == Grid::none) return parameter;
    const int64_t groups = columns / host.group;
    const Array zero_scales(rows * groups, 0.0), poisoned_scales(rows * groups, std::nan(""));
    parameter.scale = placed("scale", host.scale.empty() ? poisoned_scales : host.scale, groups);
    parameter.scale_gradient = placed("scale gradient", poisoned_scales, groups);
    parameter.scale_first_moment = placed("scale's first moment", zero_scales, groups);
    parameter.scale_second_moment = placed("scale's second moment", zero_scales, groups);
    return parameter;
}

ComputeWeight& place_weight(Bench& bench, const HostParameter& host, DType compute_type, bool embedding) {
    ComputeWeight& weight =
        bench.compute_weight(host.rows, host.columns, compute_type, embedding, host.one_scale_per_row());
    const ParameterRows parameter = place(bench, host, &weight);
    bench.backend().quantize({.parameters = {&parameter, 1}});
    return weight;
}

Tensor master_of(const ParameterRows& p) {
    return Tensor(p.master, DType::float32, {p.rows, p.columns});
}
Tensor gradient_of(const ParameterRows& p) {
    return Tensor(p.gradient, DType::float32, {p.rows, p.columns});
}
Tensor scale_of(const ParameterRows& p) {
    return Tensor(p.scale, DType::float32, {p.scales()});
}
Tensor scale_gradient_of(const ParameterRows& p) {
    return Tensor(p.scale_gradient, DType::float32, {p.scales()});
}

Array linear_output(Bench& bench, const Tensor& product, const ComputeWeight& weight) {
    const Tensor scale = weight.row_scale();
    return reference::scale_columns(bench.read(product), scale.empty() ? Array() : bench.read(scale));
}

Array revealed(Bench& bench, const ComputeWeight& weight) {
    const int64_t K = weight.columns, N = weight.rows;
    Array identity(K * K, 0.0), result(N * K);
    for (int64_t k = 0; k < K; ++k) identity[k * K + k] = 1;
    const Tensor x = bench.input("identity", identity, weight.dtype, {K, K});
    const Tensor y = bench.output("revealed weight", DType::float32, {K, N});
    bench.backend().matmul_forward({.z = y, .x = x, .weight = weight});
    const Array transposed = linear_output(bench, y, weight);
    for (int64_t n = 0; n < N; ++n)
        for (int64_t k = 0; k < K; ++k) result[n * K + k] = transposed[k * N + n];
    return result;
}

// ---- comparison

static std::string at(size_t index, double actual, double expected) {
    std::ostringstream text;
    text.precision(9);
    text << "element " << index << ": " << actual << " instead of " << expected;
    return text.str();
}

std::string difference(const Array& actual, const reference::Result& expected, DType dtype, double slack) {
    if (actual.size() != expected.value.size()) return "other number of elements";
    // Below this a result may have been flushed to zero.
    const double smallest_normal = 0x1p-126;
    for (size_t i = 0; i < actual.size(); ++i) {
        const double value = expected.value[i], error = std::abs(actual[i] - value);
        const double accumulation = slack * expected.magnitude[i] + smallest_normal;
        const double rounding = 0.5 * reference::unit_in_last_place(dtype, std::abs(value) + accumulation);
        if (!(error <= rounding + accumulation)) {
            std::ostringstream text;
            text << at(i, actual[i], value) << ", error " << error << " of allowed "
                 << rounding + accumulation;
            return text.str();
        }
    }
    const double norm = std::sqrt(reference::dot(expected.value, expected.value));
    const double magnitude = std::sqrt(reference::dot(expected.magnitude, expected.magnitude));
    if (norm <= 0.01 * magnitude || norm < 1e-30) return "";
    const double distance = reference::relative_distance(actual, expected.value);
    if (!(distance <= (dtype == DType::float32 ? 1e-5 : 5e-3)))
        return "relative distance " + std::to_string(distance);
    const double cosine =
        reference::dot(actual, expected.value) / norm / std::sqrt(reference::dot(actual, actual));
    return cosine >= 0.9999 ? "" : "cosine " + std::to_string(cosine);
}

std::string inequality(const Array& actual, const Array& expected) {
    if (actual.size() != expected.size()) return "other number of elements";
    for (size_t i = 0; i < actual.size(); ++i)
        if (!(actual[i] == expected[i])) return at(i, actual[i], expected[i]);
    return "";
}

std::string SameBits::check(const BackendUnderTest& backend, const std::string& label, const Array& values) {
    const auto [entry, first] = seen_.try_emplace(backend.device + ": " + label, values);
    if (first || std::memcmp(entry->second.data(), values.data(), values.size() * sizeof(double)) == 0)
        return "";
    for (size_t i = 0; i < values.size(); ++i)
        if (std::memcmp(&entry->second[i], &values[i], sizeof(double)) != 0)
            return entry->first + ": other bits on " + backend.name + ", " +
                   at(i, values[i], entry->second[i]);
    return "";
}

// ---- contract

std::string contract_violation(const std::string& operation, const std::function<void()>& call) {
    try {
        call();
    } catch (const std::logic_error& error) {
        const std::string message = error.what();
        if (message.find(operation) != std::string::npos) return "";
        return "the error does not name " + operation + ": " + message;
    } catch (const std::exception& error) {
        return std::string("not a std::logic_error: ") + error.what();
    }
    return "nothing thrown";
}

Tensor with_dtype(Tensor tensor, DType dtype) {
    tensor.dtype = dtype;
    return tensor;
}

Tensor with_extent(Tensor tensor, int dimension, int64_t extent) {
    tensor.shape[dimension] = extent;
    return tensor;
}

std::string contract_violations(const std::string& operation, const std::vector<Tensor>& tensors,
                                const std::set<int>& optional, const std::set<int>& free_dtype,
                                const std::function<void(const std::vector<Tensor>&)>& call) {
    std::string report;
    const auto expect = [&](int i, const std::string& what, const Tensor& replacement) {
        std::vector<Tensor> changed = tensors;
        changed[i] = replacement;
        const std::string outcome = contract_violation(operation, [&] { call(changed); });
        if (!outcome.empty()) report += "tensor " + std::to_string(i) + " " + what + ": " + outcome + "; ";
    };
    for (int i = 0; i < static_cast<int>(tensors.size()); ++i) {
        const Tensor& tensor = tensors[i];
        if (optional.count(i) == 0) expect(i, "missing", Tensor());
        for (DType dtype : {DType::float32, DType::bfloat16, DType::int32}) {
            if (dtype == tensor.dtype || (free_dtype.count(i) != 0 && dtype != DType::int32)) continue;
            expect(i, std::string("as ") + name_of(dtype), with_dtype(tensor, dtype));
        }
        for (int d = 0; d < tensor.rank; ++d)
            expect(i, "short in dimension " + std::to_string(d), with_extent(tensor, d, tensor.shape[d] - 1));
    }
    return report;
}

}  // namespace train_qat::test
