// How the CUDA backend's operations on parameters go about their work: tables that are kept from call to
// call, vector accesses where they are possible, what they ask of the memory system, and no races.
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "dev/emulator/emulator.h"
#include "kernels/codes.h"
#include "test/kernels/cuda/parameters_fixture.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

// ---- tables that are kept

TEST_CASE("a call is not taken for the one before it", "[optimizer_tables][cuda][device]") {
    for (const BackendUnderTest& device : cuda_backends()) {
        Random random(13);
        Bench bench(*device.backend);
        const HostParameter host = random_parameter(random, 6, 40, Grid::integer4, 8);
        const ParameterRows placed = place(bench, host, nullptr);
        const std::vector<float> gradient(host.gradient.begin(), host.gradient.end());
        const Tensor squares = bench.output("squares", DType::float32, {1});
        // The same memory, but something about it has changed.
        const auto check = [&](float factor, int64_t rows, Grid grid, int64_t group) {
            INFO(device.name << ", factor " << factor << ", " << text(grid, {rows, 40, group}));
            ParameterRows parameter = placed;
            parameter.scale_gradient_factor = factor;
            parameter.rows = rows;
            parameter.grid = grid;
            parameter.group = group;
            device.backend->copy_to_device(placed.gradient, gradient.data(), 6 * 40 * sizeof(float));
            device.backend->ste_backward_and_norm({.parameters = {&parameter, 1}, .squares = squares});
            const auto part = [&](const Array& whole) {
                return Array(whole.begin(), whole.begin() + rows * 40);
            };
            const reference::StraightThrough expected = reference::straight_through_backward(
                grid, rows, 40, group, factor, part(host.master), host.scale, part(host.gradient));
            CHECK(inequality(bench.read(gradient_of(parameter)), expected.gradient) == "");
            CHECK(bench.read(squares)[0] == Approx(expected.squares).epsilon(1e-6));
            if (grid == Grid::none) return;
            CHECK(difference(bench.read(scale_gradient_of(parameter)), expected.scale_gradient,
                             DType::float32, 0x1p-21) == "");
        };
        for (int repetition = 0; repetition < 2; ++repetition) check(1, 4, Grid::integer4, 8);
        check(1, 6, Grid::integer4, 8);
        check(1, 5, Grid::integer4, 8);
        check(2, 5, Grid::integer4, 8);
        check(2, 5, Grid::ternary, 8);
        check(2, 5, Grid::ternary, 10);
        check(2, 3, Grid::none, 0);
        check(2, 6, Grid::none, 0);
        check(1, 4, Grid::integer4, 8);
    }
}

TEST_CASE("calls without parameters do nothing", "[optimizer_tables][cuda][device]") {
    for (const BackendUnderTest& device : cuda_backends()) {
        INFO(device.name);
        Bench bench(*device.backend);
        device.backend->initialize_scales({});
        device.backend->quantize({});
        device.backend->adamw_and_quantize({.parameters = {},
                                            .step = example_step(),
                                            .squares = bench.input("squares", {1}, DType::float32, {1})});
        const HostParameter plain{1, 2, Grid::none, 0, {1, 2}, {}, {}};
        const ParameterRows parameter = place(bench, plain, nullptr);
        device.backend->initialize_scales({.parameters = {&parameter, 1}});
        device.backend->quantize({.parameters = {&parameter, 1}});
        CHECK(bench.damage() == "");
    }
}

// Scalar and vector accesses are two ways through the same arithmetic.
TEST_CASE("alignment changes no bit", "[optimizer_tables][cuda][device]") {
    for (const BackendUnderTest& device : cuda_backends())
        for (Grid grid : {Grid::none, Grid::binary, Grid::quaternary, Grid::integer5})
            for (bool narrow : {false, true}) {
                INFO(device.name << " " << reference::name_of(grid) << (narrow ? " bfloat16" : ""));
                Random random(14);
                HostParameter host = random_parameter(random, 9, 64, grid, 64);
                host.master = reference::rounded(DType::bfloat16, host.master);
                Bytes results[2];
                for (int shift = 0; shift < 2; ++shift) {
                    Bench bench(*device.backend);
                    ComputeWeight& weight = bench.compute_weight(9, 64, DType::bfloat16, false, false);
                    ParameterRows parameter =
                        narrow ? place_narrow(bench, host, &weight) : place(bench, host, &weight);
                    // One element further in memory that is one element longer.
                    Array longer = host.gradient;
                    longer.insert(longer.begin(), shift, 5.0);
                    parameter.gradient =
                        bench.input("gradient", longer, DType::float32, {std::ssize(longer)}).as<float>() +
                        shift;
                    if (grid != Grid::none)
                        parameter.scale_gradient =
                            bench.input("scale gradient", Array(9, 0.01f), DType::float32, {9}).as<float>();
                    device.backend->adamw_and_quantize(
                        {.parameters = {&parameter, 1},
                         .step = example_step(),
                         .squares = bench.input("squares", {1}, DType::float32, {1})});
                    const Bytes levels = storage_of(*device.backend, weight);
                    const void* master =
                        narrow ? static_cast<void*>(parameter.narrow_master) : parameter.master;
                    const Bytes weights = bytes_of(*device.backend, master, 9 * 64 * (narrow ? 2 : 4));
                    results[shift] = levels;
                    results[shift].insert(results[shift].end(), weights.begin(), weights.end());
                    CHECK(bench.damage() == "");
                }
                CHECK((results[0] == results[1]));
            }
}

// ---- the memory system and schedules

namespace {

std::vector<BackendUnderTest> emulated_backends() {
    std::vector<BackendUnderTest> result;
    for (const BackendUnderTest& device : cuda_backends())
        if (device.name.find("emulated") != std::string::npos) result.push_back(device);
    return result;
}

struct Sample {
    int64_t rows, columns;
    Grid grid;
    int64_t group;
    std::vector<int64_t> nan = {};  // weights that are NaN
};

// One parameter of each sample; single rows are vectors that no matmul reads.
std::vector<ParameterRows> place_all(Bench& bench, const std::vector<Sample>& samples, bool narrow) {
    Random random(20);
    std::vector<ParameterRows> parameters;
    for (const Sample& sample : samples) {
        HostParameter host = random_parameter(random, sample.rows, sample.columns, sample.grid, sample.group);
        for (int64_t i : sample.nan) host.master[i] = std::nan("");
        ComputeWeight* weight = sample.rows == 1 ? nullptr
                                                 : &bench.compute_weight(sample.rows, sample.columns,
                                                                         DType::bfloat16, false, false);
        parameters.push_back(narrow && weight != nullptr ? place_narrow(bench, host, weight)
                                                         : place(bench, host, weight));
    }
    return parameters;
}

// Bytes that an operation must read and write. `weights`, `scales`: bytes for each of them.
int64_t floor_bytes(const std::vector<ParameterRows>& parameters, int64_t weights, int64_t scales,
                    bool masters_too, bool levels_too) {
    int64_t bytes = 0;
    for (const ParameterRows& p : parameters) {
        bytes += weights * p.elements() + scales * p.scales();
        if (masters_too) bytes += p.elements() * (p.narrow_master != nullptr ? 2 : 4);
        if (!levels_too || p.compute == nullptr) continue;
        bytes += 4 * p.rows;
        if (p.compute->codes == Grid::none) {
            bytes += 2 * p.elements();
            continue;
        }
        bytes += p.rows * code_row_bytes(p.columns, code_bits(p.grid));
        if (p.group < p.columns) bytes += 4 * p.scales();
    }
    return bytes;
}

}  // namespace

// The tables and second looks at scales are small change, and hit the first-level cache. What does not happen
// in every step may cost a little more.
TEST_CASE("parameters are read once and written once, in whole sectors", "[lint][cuda]") {
    const std::vector<Sample> samples = {{160, 768, Grid::integer4, 768}, {70, 1024, Grid::integer8, 32},
                                         {64, 2048, Grid::binary, 2048},  {128, 512, Grid::ternary, 64},
                                         {1, 768, Grid::none, 0},         {128, 512, Grid::none, 0}};
    for (const BackendUnderTest& device : emulated_backends())
        for (bool narrow : {false, true}) {
            Bench bench(*device.backend);
            const std::vector<ParameterRows> parameters = place_all(bench, samples, narrow);
            const Tensor squares = bench.output("squares", DType::float32, {std::ssize(parameters)});
            const auto check = [&](const char* operation, const std::function<void()>& call,
                                   const std::function<int64_t()>& least, bool every_step) {
                const emulator::Recorder recorder;
                call();
                emulator::Counters all;
                for (const emulator::LaunchReport& launch : recorder.launches()) all += launch;
                const double sector = 32, moved = sector * (all.load_sectors + all.store_sectors);
                INFO(device.name << ", " << operation << (narrow ? ", bfloat16 weights" : "") << ": " << moved
                                 << " bytes of " << least() << "\n"
                                 << emulator::markdown(recorder.launches()));
                CHECK(all.load_sectors <= 1.01 * all.ideal_load_sectors);
                CHECK(all.store_sectors <= 1.01 * all.ideal_store_sectors);
                if (!narrow || every_step) CHECK(moved <= 1.1 * least());
            };
            std::vector<ParameterRows> quantized;
            for (const ParameterRows& p : parameters)
                if (p.grid != Grid::none) quantized.push_back(p);
            check(
                "initialize_scales", [&] { device.backend->initialize_scales({.parameters = parameters}); },
                [&] { return floor_bytes(quantized, 0, 4, true, false); }, false);
            check(
                "quantize", [&] { device.backend->quantize({.parameters = parameters}); },
                [&] { return floor_bytes(parameters, 0, 4, true, true); }, false);
            check(
                "ste_backward_and_norm",
                [&] {
                    device.backend->ste_backward_and_norm({.parameters = parameters, .squares = squares});
                },
                [&] {
                    return floor_bytes(quantized, 8, 8, true, false) +
                           4 * (floor_bytes(parameters, 1, 0, false, false) -
                                floor_bytes(quantized, 1, 0, false, false));
                },
                true);
            check(
                "adamw_and_quantize",
                [&] {
                    device.backend->adamw_and_quantize(
                        {.parameters = parameters, .step = example_step(), .squares = squares});
                },
                [&] {
                    return floor_bytes(parameters, 20, 28, true, true) +
                           floor_bytes(parameters, 0, 0, true, false);
                },
                true);
            CHECK(bench.damage() == "");
        }
}

TEST_CASE("operations on parameters have no races and know no schedule", "[races][cuda]") {
    const std::vector<Sample> samples = {{5, 33, Grid::integer4, 33},
                                         {9, 96, Grid::integer8, 32},
                                         {3, 1027, Grid::binary, 1027, {4, 900, 2060}},
                                         {40, 512, Grid::ternary, 64},
                                         {6, 30, Grid::quaternary, 3},
                                         {1, 700, Grid::none, 0},
                                         {17, 2048, Grid::integer5, 64},
                                         {20, 51, Grid::none, 0}};
    for (const BackendUnderTest& device : emulated_backends())
        for (bool narrow : {false, true}) {
            Bytes first;
            for (uint64_t seed : {0, 1, 2, 3}) {
                INFO(device.name << (narrow ? ", bfloat16 weights" : "") << ", schedule " << seed);
                emulator::Settings settings = emulator::settings();
                settings.check_races = true;
                settings.schedule_seed = seed;
                const emulator::SettingsScope scope(settings);
                Bench bench(*device.backend);
                const std::vector<ParameterRows> parameters = place_all(bench, samples, narrow);
                const Tensor squares = bench.output("squares", DType::float32, {std::ssize(parameters)});
                device.backend->initialize_scales({.parameters = parameters});
                device.backend->quantize({.parameters = parameters});
                device.backend->ste_backward_and_norm({.parameters = parameters, .squares = squares});
                device.backend->adamw_and_quantize(
                    {.parameters = parameters, .step = example_step(), .squares = squares});
                Bytes result = bytes_of(*device.backend, squares.data, squares.bytes());
                for (const ParameterRows& p : parameters) {
                    const auto append = [&](const void* data, int64_t bytes) {
                        const Bytes part = bytes_of(*device.backend, data, bytes);
                        result.insert(result.end(), part.begin(), part.end());
                    };
                    if (p.narrow_master != nullptr)
                        append(p.narrow_master, p.elements() * 2);
                    else
                        append(p.master, p.elements() * 4);
                    append(p.gradient, p.elements() * 4);
                    if (p.grid != Grid::none) append(p.scale, p.scales() * 4);
                    if (p.compute != nullptr) append(p.compute->storage, p.elements() * 2);
                }
                if (first.empty()) first = result;
                CHECK((result == first));
            }
        }
}
