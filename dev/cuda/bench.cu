// The frame of the kernel benchmarks: data, comparison, timing, table.
#include "dev/cuda/bench.h"

#include <algorithm>
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#if !defined(__CUDACC__)
#include "dev/emulator/emulator.h"
#endif

namespace train_qat::CU_BACKEND {

namespace {

#if defined(__CUDACC__)
constexpr bool on_gpu = true;
#else
constexpr bool on_gpu = false;
#endif

// A prime: rows of a matrix begin at different places of the pattern.
constexpr int64_t longest_pattern = 100'003;

void encode(unsigned char* bytes, double value, DType dtype) {
    if (dtype == DType::bfloat16) {
        const bfloat16 narrow(static_cast<float>(value));
        std::memcpy(bytes, &narrow, sizeof narrow);
    } else if (dtype == DType::int32) {
        const auto integer = static_cast<int32_t>(value);
        std::memcpy(bytes, &integer, sizeof integer);
    } else {
        const auto single = static_cast<float>(value);
        std::memcpy(bytes, &single, sizeof single);
    }
}

double decode(const unsigned char* bytes, DType dtype) {
    if (dtype == DType::bfloat16) {
        bfloat16 narrow;
        std::memcpy(&narrow, bytes, sizeof narrow);
        return static_cast<double>(static_cast<float>(narrow));
    }
    if (dtype == DType::int32) {
        int32_t integer;
        std::memcpy(&integer, bytes, sizeof integer);
        return integer;
    }
    float single;
    std::memcpy(&single, bytes, sizeof single);
    return single;
}

}  // namespace

// ---- comparison

void Comparison::add(double actual, double expected, double magnitude, DType dtype, double slack) {
    const double smallest_normal = 0x1p-126;  // below this a result may have been flushed to zero
    const double tolerance = slack * magnitude + smallest_normal;
    const double rounding =
        slack == 0 ? 0 : 0.5 * reference::unit_in_last_place(dtype, std::abs(expected) + tolerance);
    double distance = std::abs(actual - expected);
    if (std::isnan(distance)) distance = std::numeric_limits<double>::infinity();
    error = std::max(error, distance);
    share = std::max(share, (distance - rounding) / tolerance);
}

void Comparison::add(const Array& actual, const reference::Result& expected, DType dtype, double slack) {
    if (actual.size() != expected.value.size())
        throw std::logic_error("Comparison: another number of elements than the oracle's");
    for (size_t i = 0; i < actual.size(); ++i)
        add(actual[i], expected.value[i], expected.magnitude[i], dtype, slack);
}

// ---- data

Array Numbers::rows(int64_t first, int64_t count) const {
    const int64_t columns = tensor_.elements() / tensor_.shape[0];
    Array result(count * columns);
    for (int64_t i = 0; i < std::ssize(result); ++i) result[i] = (*this)[first * columns + i];
    return result;
}

void* Problem::memory(int64_t bytes) {
    memory_.emplace_back(backend_, bytes);
    return memory_.back().data();
}

Numbers Problem::numbers(DType dtype, Shape shape, const std::function<double()>& draw) {
    Tensor tensor(nullptr, dtype, shape);
    tensor.data = memory(tensor.bytes());
    Array pattern(std::min(tensor.elements(), longest_pattern));
    // The oracle computes with what the device gets.
    for (double& value : pattern) value = dtype == DType::int32 ? draw() : reference::round_to(dtype, draw());
    Numbers result(tensor, std::move(pattern));
    upload(result);
    return result;
}

Numbers Problem::normals(DType dtype, Shape shape, double deviation) {
    return numbers(dtype, shape, [&] {
        constexpr double turn = 6.283185307179586;
        return deviation * std::sqrt(-2 * std::log(1 - uniform())) * std::cos(turn * uniform());
    });
}

Numbers Problem::positives(DType dtype, Shape shape, double largest) {
    return numbers(dtype, shape,
                   [&] { return reference::round_to_float16(largest * (0.01 + 0.99 * uniform())); });
}

Numbers Problem::tokens(Shape shape, int64_t vocabulary) {
    return numbers(DType::int32, shape,
                   [&] { return std::floor(uniform() * static_cast<double>(vocabulary)); });
}

void Problem::upload(const Numbers& numbers) {
    const Tensor& tensor = numbers.tensor();
    const int64_t size = size_of(tensor.dtype);
    std::vector<unsigned char> bytes(numbers.pattern().size() * size);
    for (size_t i = 0; i < numbers.pattern().size(); ++i)
        encode(&bytes[i * size], numbers.pattern()[i], tensor.dtype);
    for (int64_t done = 0; done < tensor.bytes(); done += std::ssize(bytes))
        backend_.copy_to_device(static_cast<char*>(tensor.data) + done, bytes.data(),
                                std::min<int64_t>(std::ssize(bytes), tensor.bytes() - done));
}

Tensor Problem::output(DType dtype, Shape shape) {
    Tensor tensor(nullptr, dtype, shape);
    tensor.data = memory(tensor.bytes());
    return tensor;
}

void Problem::poison(const Tensor& tensor) {
    const std::vector<unsigned char> bytes(std::min<int64_t>(tensor.bytes(), 1 << 22), 0xff);
    for (int64_t done = 0; done < tensor.bytes(); done += std::ssize(bytes))
        backend_.copy_to_device(static_cast<char*>(tensor.data) + done, bytes.data(),
                                std::min<int64_t>(std::ssize(bytes), tensor.bytes() - done));
}

Array Problem::read(const Tensor& tensor) {
    std::vector<unsigned char> bytes(tensor.bytes());
    backend_.copy_to_host(bytes.data(), tensor.data, tensor.bytes());
    Array values(tensor.elements());
    for (size_t i = 0; i < values.size(); ++i)
        values[i] = decode(&bytes[i * size_of(tensor.dtype)], tensor.dtype);
    return values;
}

std::vector<int64_t> Problem::sample(int64_t count) {
    constexpr int64_t few = 256, sampled = 7;
    std::vector<int64_t> result;
    if (count <= few)
        for (int64_t i = 0; i < count; ++i) result.push_back(i);
    else
        for (int64_t i = 0; i < sampled; ++i) result.push_back(i * (count - 1) / (sampled - 1));
    return result;
}

// ---- the program

namespace {

struct CommandLine {
    bool check = false;
    int variant = 0;  // 0: all
    int repetitions = 20;
    int device = 0;
    Sizes sizes;
};

CommandLine parse(const Benchmark& benchmark, int argc, char** argv) {
    CommandLine result;
    CLI::App app(std::string(benchmark.description) +
                 (on_gpu ? "" : "\nOn the emulated device, where times mean nothing: only --check."));
    app.add_flag("--check", result.check, "only correctness, on small odd shapes");
    app.add_option("--variant", result.variant, "only this one")->check(CLI::PositiveNumber);
    if (on_gpu) {
        app.add_option("--repetitions", result.repetitions, "of the timing; the best counts")
            ->check(CLI::PositiveNumber)
            ->capture_default_str();
        app.add_option("--device", result.device)->capture_default_str();
        for (const Size& size : benchmark.sizes) {
            int64_t& value = result.sizes[size.name] = size.timed;
            app.add_option(std::string("--") + size.name, value)
                ->check(CLI::PositiveNumber)
                ->capture_default_str();
        }
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        std::exit(app.exit(error) == 0 ? 0 : 2);
    }
    return result;
}

std::string text_of(const Sizes& sizes, const Benchmark& benchmark) {
    std::string text;
    for (const Size& size : benchmark.sizes)
        text += (text.empty() ? "" : ", ") + (size.name + (" " + std::to_string(sizes.at(size.name))));
    return text;
}

Comparison compared(const Operation& operation, const Variant& variant, Runtime& runtime) {
    if (operation.reset) operation.reset();
    variant.run();
    runtime.synchronize();
    return operation.compare();
}

// The time that the card would need at its limits, by memory or by tensor cores.
struct Limit {
    double seconds = 0;
    bool of_memory = true;
};
Limit limit_of(const Operation& operation, const DeviceProperties& card) {
    const double memory = card.memory_bandwidth > 0 ? operation.bytes / card.memory_bandwidth : 0;
    const double arithmetic = card.bfloat16_flops > 0 ? operation.flops / card.bfloat16_flops : 0;
    return {std::max(memory, arithmetic), memory >= arithmetic};
}

class Program {
  public:
    Program(const Benchmark& benchmark, const CommandLine& command_line)
        : benchmark_(benchmark), command_line_(command_line), backend_(options(command_line)) {}

    bool run() {
        std::printf("%s, %s\n", benchmark_.name, backend_.describe().c_str());
        for (size_t shape = 0; shape < benchmark_.sizes.front().checked.size(); ++shape) check(shape);
        if (!command_line_.check) time();
        if (command_line_.variant > last_number_)
            throw std::runtime_error("--variant: there are " + std::to_string(last_number_) + ", no " +
                                     std::to_string(command_line_.variant));
        return failures_ == 0;
    }

  private:
    // Packed codes wherever the backend has a choice.
    static CudaOptions options(const CommandLine& command_line) {
        CudaOptions result;
        result.device = command_line.device;
        result.qat_gemm = QatGemm::fused;
        return result;
    }

    // Calls body(operation, variant, number) for the chosen variants.
    template <typename Body>
    void for_each_variant(std::vector<Operation>&& operations, Body&& body) {
        last_number_ = 0;
        for (const Operation& operation : operations) {
            for (const Variant& variant : operation.variants) {
                const int number = ++last_number_;
                if (command_line_.variant != 0 && command_line_.variant != number) continue;
                body(operation, variant, number);
            }
        }
    }

    void check(size_t shape) {
        Sizes sizes;
        for (const Size& size : benchmark_.sizes) sizes[size.name] = size.checked.at(shape);
        const std::unique_ptr<Problem> problem = benchmark_.make(backend_, sizes);
        if (command_line_.check) std::printf("\n%s\n", text_of(sizes, benchmark_).c_str());
        for_each_variant(problem->operations(), [&](const Operation& o, const Variant& variant, int number) {
            const Comparison result = compared(o, variant, backend_.device().runtime());
            failures_ += !result.passed();
            if (!command_line_.check && result.passed()) return;
            std::printf("%3d %-66s error %8.2e, %4.0f%% of the tolerance%s\n", number,
                        (o.name + ": " + variant.name).c_str(), result.error, 100 * result.share,
                        result.passed() ? "" : "  WRONG");
            std::fflush(stdout);
        });
    }

    void time() {
        const DeviceProperties& card = backend_.device().properties();
        const std::unique_ptr<Problem> problem = benchmark_.make(backend_, command_line_.sizes);
        std::printf("%s; limits %.0f TFLOP/s, %.0f GB/s\n", text_of(command_line_.sizes, benchmark_).c_str(),
                    card.bfloat16_flops / 1e12, card.memory_bandwidth / 1e9);
        std::string heading;
        for_each_variant(problem->operations(), [&](const Operation& o, const Variant& variant, int number) {
            const Limit limit = limit_of(o, card);
            if (o.name != heading) {
                heading = o.name;
                std::printf("\n    %-58s %10s %8s %9s %10s %10s\n", heading.c_str(), "us",
                            limit.of_memory ? "GB/s" : "TFLOP/s", "of limit", "max error", "tolerance");
            }
            const Comparison result = compared(o, variant, backend_.device().runtime());
            failures_ += !result.passed();
            const double seconds =
                backend_.device().runtime().seconds(variant.run, command_line_.repetitions);
            std::printf("%3d %-58s %10.1f %8.1f %8.1f%% %10.2e %9.0f%%%s\n", number, variant.name.c_str(),
                        seconds * 1e6, limit.of_memory ? o.bytes / seconds / 1e9 : o.flops / seconds / 1e12,
                        100 * limit.seconds / seconds, result.error, 100 * result.share,
                        result.passed() ? "" : "  WRONG");
            std::fflush(stdout);
        });
    }

    const Benchmark& benchmark_;
    const CommandLine& command_line_;
    CudaBackend backend_;
    int last_number_ = 0;
    int failures_ = 0;
};

}  // namespace

int run_benchmark(const Benchmark& benchmark, int argc, char** argv) {
    const CommandLine command_line = parse(benchmark, argc, argv);
    if (!on_gpu && !command_line.check) {
        std::fprintf(stderr, "%s: error: times on the emulated device mean nothing; only --check\n", argv[0]);
        return 2;
    }
    try {
#if !defined(__CUDACC__)
        emulator::Settings strict;
        strict.check_races = true;
        strict.compute_capability = 90;
        const emulator::SettingsScope scope(strict);
#endif
        return Program(benchmark, command_line).run() ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: error: %s\n", argv[0], error.what());
        return 2;
    }
}

}  // namespace train_qat::CU_BACKEND
