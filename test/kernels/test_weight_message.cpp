// Weights as ranks exchange them: what is put together from the messages of all parts must be what one
// process makes of the whole.
#include <cmath>
#include <cstring>

#include "kernels/codes.h"
#include "kernels/ranks/communicator.h"
#include "test/support/catch.h"
#include "test/support/device.h"

namespace train_qat::test {

namespace {

struct Case {
    int64_t rows, columns;
    Grid grid;
    int64_t group;
    DType dtype;
    bool embedding;
    int ranks;
};

std::string text_of(const Case& c) {
    return std::to_string(c.rows) + " x " + std::to_string(c.columns) + ", grid " +
           std::to_string(static_cast<int>(c.grid)) + ", group " + std::to_string(c.group) + ", " +
           name_of(c.dtype) + (c.embedding ? ", embedding, " : ", ") + std::to_string(c.ranks) + " ranks";
}

std::vector<Case> cases() {
    Random random(71);
    std::vector<Case> cases;
    for (Grid grid : {Grid::none, Grid::binary, Grid::ternary, Grid::quaternary, Grid::integer3,
                      Grid::integer4, Grid::integer5, Grid::integer6, Grid::integer8})
        for (DType dtype : compute_types())
            for (bool grouped : {false, true}) {
                const int64_t columns = grouped ? 32 * random.integer(1, 5) : random.integer(1, 150);
                cases.push_back({random.integer(1, 70), columns, grid, grouped ? 32 : columns, dtype,
                                 random.integer(0, 2) == 0, static_cast<int>(random.integer(1, 5))});
            }
    return cases;
}

// As an all-gather does it: rank's rows of `from` into `to`.
void exchange(Backend& backend, const Case& c, int rank, const WeightMessage& from, const WeightMessage& to) {
    const int64_t first = first_row(c.rows, rank, c.ranks), end = first_row(c.rows, rank + 1, c.ranks);
    std::vector<char> bytes;
    const auto copy = [&](void* target, const void* source, int64_t row_bytes) {
        bytes.resize(static_cast<size_t>((end - first) * row_bytes));
        if (bytes.empty()) return;
        backend.copy_to_host(bytes.data(), static_cast<const char*>(source) + first * row_bytes,
                             std::ssize(bytes));
        backend.copy_to_device(static_cast<char*>(target) + first * row_bytes, bytes.data(),
                               std::ssize(bytes));
        backend.synchronize();
    };
    REQUIRE(from.row_bytes == to.row_bytes);
    REQUIRE(from.scales_per_row == to.scales_per_row);
    copy(to.numbers, from.numbers, from.row_bytes);
    if (from.scales != nullptr) copy(to.scales, from.scales, from.scales_per_row * 4);
}

ParameterRows without_state(ParameterRows p) {
    p.master = p.gradient = p.first_moment = p.second_moment = nullptr;
    p.scale = p.scale_gradient = p.scale_first_moment = p.scale_second_moment = nullptr;
    return p;
}

// The weight of a rank that keeps nothing, from the messages of all others.
ComputeWeight& received(Bench& bench, const Case& c, const HostParameter& host) {
    Backend& backend = bench.backend();
    ComputeWeight& weight = bench.compute_weight(c.rows, c.columns, c.dtype, c.embedding, false);
    ParameterRows whole = without_state(place(bench, host, &weight));
    void* const buffer = bench.workspace(std::max<int64_t>(256, backend.weight_message_bytes(whole)));
    const std::vector<WeightMessage> message = backend.weight_messages({&whole, 1}, buffer);
    for (int rank = 0; rank < c.ranks; ++rank) {
        ComputeWeight& its_weight = bench.compute_weight(c.rows, c.columns, c.dtype, c.embedding, false);
        const ParameterRows kept = place(bench, host, &its_weight);
        void* const its_buffer = bench.workspace(std::max<int64_t>(256, backend.weight_message_bytes(kept)));
        const int64_t first = first_row(c.rows, rank, c.ranks);
        const ParameterRows part = rows_of(kept, first, first_row(c.rows, rank + 1, c.ranks) - first);
        if (part.rows == 0) continue;
        backend.quantize({.parameters = {&part, 1}});
        const std::vector<WeightMessage> its_message = backend.weight_messages({&kept, 1}, its_buffer);
        backend.write_weight_messages({.rows = {&part, 1}, .messages = its_message});
        exchange(backend, c, rank, its_message[0], message[0]);
    }
    backend.read_weight_messages({.parameters = {&whole, 1}, .messages = message});
    return weight;
}

}  // namespace

TEST_CASE("weights come through their messages bit by bit", "[weight_message][device]") {
    for (const Case& c : affordable(cases(), 4000, [](const Case& c) { return c.rows * c.columns; }))
        for (const BackendUnderTest& device : backends_under_test(c.dtype)) {
            INFO(device.name << ": " << text_of(c));
            Random random(c.rows * 1000 + c.columns);
            Bench bench(*device.backend);
            const HostParameter host = random_parameter(random, c.rows, c.columns, c.grid, c.group);
            const ComputeWeight& expected = place_weight(bench, host, c.dtype, c.embedding);
            const ComputeWeight& actual = received(bench, c, host);
            CHECK(actual.scaled == expected.scaled);
            CHECK(inequality(revealed(bench, actual), revealed(bench, expected)) == "");
            if (expected.scaled)
                CHECK(inequality(bench.read(actual.row_scale()), bench.read(expected.row_scale())) == "");
            CHECK(bench.damage() == "");
        }
}

TEST_CASE("messages are as small as their codes", "[weight_message][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::bfloat16)) {
        Bench bench(*device.backend);
        Random random(5);
        const HostParameter host = random_parameter(random, 10, 256, Grid::quaternary, 256);
        ComputeWeight& weight = bench.compute_weight(10, 256, DType::bfloat16, false, true);
        const ParameterRows whole = place(bench, host, &weight);
        void* const buffer = bench.workspace(device.backend->weight_message_bytes(whole));
        const WeightMessage message = device.backend->weight_messages({&whole, 1}, buffer)[0];
        CHECK(message.row_bytes == 256 / 4);
        CHECK(message.scales_per_row == 1);
    }
}

TEST_CASE("a NaN weight is seen by all ranks", "[weight_message][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::bfloat16))
        for (bool embedding : {false, true}) {
            INFO(device.name);
            const Case c{6, 64, Grid::integer4, 64, DType::bfloat16, embedding, 2};
            Random random(6);
            Bench bench(*device.backend);
            HostParameter host = random_parameter(random, c.rows, c.columns, c.grid, c.group);
            host.master[4 * 64 + 9] = std::nan("");
            const ComputeWeight& weight = received(bench, c, host);
            const Array scales = bench.read(weight.row_scale());
            for (int64_t row = 0; row < c.rows; ++row) CHECK(std::isnan(scales[row]) == (row == 4));
        }
}

TEST_CASE("message operations name what is wrong", "[weight_message][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        Bench bench(*device.backend);
        Random random(7);
        const HostParameter host = random_parameter(random, 4, 32, Grid::integer4, 32);
        ComputeWeight& weight = bench.compute_weight(4, 32, DType::float32, false, true);
        const ParameterRows whole = place(bench, host, &weight);
        ParameterRows homeless = whole;
        homeless.compute = nullptr;
        Backend& backend = *device.backend;
        CHECK(contract_violation("weight_messages", [&] {
                  backend.weight_messages({&homeless, 1}, nullptr);
              }) == "");
        CHECK(contract_violation("write_weight_messages", [&] {
                  backend.write_weight_messages({.rows = {&whole, 1}, .messages = {}});
              }) == "");
        CHECK(contract_violation("read_weight_messages", [&] {
                  backend.read_weight_messages({.parameters = {&whole, 1}, .messages = {}});
              }) == "");
    }
    CHECK_THROWS_AS(rows_of(ParameterRows{}, 0, 1), std::logic_error);
}

}  // namespace train_qat::test
