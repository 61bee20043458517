// Device, memory and the sum of a vector.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/device_memory.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

// With sanitizers an allocation that cannot succeed must fail as it does without.
extern "C" const char* __asan_default_options() {
    return "allocator_may_return_null=1";
}
extern "C" const char* __tsan_default_options() {
    return "allocator_may_return_null=1";
}

TEST_CASE("a backend describes itself and supports float32", "[memory][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Backend& backend = *device.backend;
        CHECK_FALSE(backend.describe().empty());
        CHECK(backend.describe().find('\n') == std::string::npos);
        CHECK(backend.available_memory() > 0);
        CHECK(backend.supports(DType::float32));
        CHECK_FALSE(backend.supports(DType::int32));
        CHECK(backend.peak_flops(DType::float32) > 1e6);
        for (DType type : {DType::float32, DType::bfloat16}) CHECK_FALSE(backend.peak_source(type).empty());
    }
}

TEST_CASE("a backend prefers rows of logits by the sizes alone", "[memory][device]") {
    Random random(43);
    for (const BackendUnderTest& device : backends_under_test())
        for (int64_t vocabulary : {int64_t{2}, random.integer(1000, 300'000), int64_t{1} << 31}) {
            const Backend& backend = *device.backend;
            const DType type = random.pick({DType::float32, DType::bfloat16});
            const int64_t most = backend.preferred_logit_rows(int64_t{1} << 40, vocabulary, type);
            INFO(device.name << ", vocabulary " << vocabulary << " in " << name_of(type) << ": " << most
                             << " rows");
            CHECK(most >= 512);
            CHECK(most <= 8192);
            CHECK(most % 128 == 0);
            CHECK((most == 512 || most * vocabulary * size_of(type) <= int64_t{1} << 30));
            if (vocabulary == 2) CHECK(most == (device.is_cpu() ? 512 : 8192));
            const DeviceMemory taken(*device.backend, 100'000'000);
            for (int64_t rows : {int64_t{1}, random.integer(2, 511), most - 1, most, most + 1})
                CHECK(backend.preferred_logit_rows(rows, vocabulary, type) == std::min(rows, most));
        }
}

TEST_CASE("allocate gives aligned zeros, also from used memory", "[memory][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        Backend& backend = *device.backend;
        for (int64_t bytes : {1, 2, 63, 64, 65, 4095, 4097, 100003, 5000011}) {
            INFO(device.name << ", " << bytes << " bytes");
            for (int repetition = 0; repetition < 2; ++repetition) {
                const DeviceMemory memory(backend, bytes);
                REQUIRE(memory.data() != nullptr);
                CHECK(memory.bytes() == bytes);
                CHECK(reinterpret_cast<uintptr_t>(memory.data()) % 64 == 0);
                std::vector<unsigned char> host(bytes, 0x77);
                backend.copy_to_host(host.data(), memory.data(), bytes);
                CHECK(host == std::vector<unsigned char>(bytes, 0));
                host.assign(bytes, 0xab);
                backend.copy_to_device(memory.data(), host.data(), bytes);
                backend.synchronize();
            }
        }
    }
}

TEST_CASE("copies and fill_zero touch exactly their range", "[memory][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Backend& backend = *device.backend;
        const int64_t bytes = 9000007;  // more than one block of a parallel fill
        std::vector<unsigned char> host(bytes), back(bytes);
        for (int64_t i = 0; i < bytes; ++i) host[i] = static_cast<unsigned char>(1 + i % 251);
        const DeviceMemory memory(backend, bytes);
        backend.copy_to_device(memory.data(), host.data(), bytes);
        char* data = static_cast<char*>(memory.data());
        backend.fill_zero(data + 1003, 8000001);
        std::fill(host.begin() + 1003, host.begin() + 1003 + 8000001, 0);
        backend.copy_to_host(back.data(), memory.data(), bytes);
        CHECK(back == host);

        const std::vector<unsigned char> patch = {9, 8, 7};
        backend.copy_to_device(data + 500, patch.data(), 3);
        std::copy(patch.begin(), patch.end(), host.begin() + 500);
        backend.fill_zero(data + 600, 0);
        backend.copy_to_device(data + 600, patch.data(), 0);
        std::vector<unsigned char> window(7, 0x55);
        backend.copy_to_host(window.data() + 1, data + 499, 5);
        CHECK(window == std::vector<unsigned char>{0x55, host[499], 9, 8, 7, host[503], 0x55});
        backend.copy_to_host(back.data(), memory.data(), bytes);
        CHECK(back == host);
    }
}

TEST_CASE("an allocation that cannot succeed says so", "[memory][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        std::string message;
        try {
            device.backend->release(device.backend->allocate(int64_t{1} << 60));
        } catch (const std::runtime_error& error) {
            message = error.what();
        }
        INFO(message);
        CHECK(message.find("memory") != std::string::npos);
        CHECK(message.find(std::to_string(int64_t{1} << 60)) != std::string::npos);
        CHECK(message.find('\n') == std::string::npos);
        // The next operation knows nothing of it.
        Bench bench(*device.backend);
        const Tensor total = bench.output("total", DType::float32, {1});
        device.backend->sum({.total = total, .values = bench.input("values", {1, 2.5}, DType::float32, {2})});
        CHECK(bench.read(total)[0] == 3.5);
    }
}

TEST_CASE("DeviceMemory moves, and is empty for zero bytes", "[memory][device]") {
    Backend& backend = *backends_under_test().front().backend;
    DeviceMemory first(backend, 100);
    void* data = first.data();
    DeviceMemory second(std::move(first));
    CHECK(second.data() == data);
    CHECK(second.bytes() == 100);
    first = DeviceMemory(backend, 0);
    CHECK(first.data() == nullptr);
    first = std::move(second);
    CHECK(first.data() == data);
}

TEST_CASE("compute weights need memory for every element", "[memory][device]") {
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            for (bool embedding : {false, true}) {
                // Packed codes may be as small as two bits.
                CHECK(device.backend->compute_weight_bytes(1, 1, type, embedding) >= 1);
                CHECK(device.backend->compute_weight_bytes(130, 70, type, embedding) >= 130 * 70 / 4);
            }
        }
    }
}

// ---- sum

TEST_CASE("sum adds in double precision and accumulates", "[sum][device]") {
    SameBits same;
    for (const BackendUnderTest& device : backends_under_test()) {
        for (int64_t n : {1, 2, 7, 64, 1000, 70001}) {
            for (bool accumulate : {false, true}) {
                INFO(device.name << ", " << n << " values, accumulate " << accumulate);
                Random random(17 + n);
                const Array values = random.normals(n, DType::float32, 100);
                reference::Result expected(1);
                if (accumulate) expected.add(0, 1234.5);
                for (double value : values) expected.add(0, value);
                Bench bench(*device.backend);
                const Tensor total = accumulate ? bench.update("total", {1234.5}, DType::float32, {1})
                                                : bench.output("total", DType::float32, {1});
                device.backend->sum({.total = total,
                                     .values = bench.input("values", values, DType::float32, {n}),
                                     .accumulate = accumulate});
                const Array actual = bench.read(total);
                // One rounding to float32, and one more of the sum before it is added.
                CHECK(difference(actual, expected, DType::float32, accumulate ? 0x1p-24 : 0x1p-50) == "");
                CHECK(same.check(device, std::to_string(2 * n + accumulate), actual) == "");
                CHECK(bench.damage() == "");
            }
        }
    }
}

TEST_CASE("sum does not lose small values between large ones", "[sum][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Bench bench(*device.backend);
        const Tensor total = bench.output("total", DType::float32, {1});
        const Array values = {1e8, 1, 1, -1e8, 0.5};
        device.backend->sum({.total = total, .values = bench.input("values", values, DType::float32, {5})});
        CHECK(bench.read(total)[0] == 2.5);
    }
}

TEST_CASE("sum shows NaN and infinity", "[sum][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        for (double special :
             {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
            INFO(device.name << ", " << special);
            Bench bench(*device.backend);
            const Tensor total = bench.output("total", DType::float32, {1});
            device.backend->sum(
                {.total = total, .values = bench.input("values", {1, special, -1}, DType::float32, {3})});
            CHECK_FALSE(std::isfinite(bench.read(total)[0]));
        }
    }
}

TEST_CASE("sum checks its arguments", "[sum][contract][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Bench bench(*device.backend);
        const Tensor values = bench.input("values", {1, 2, 3}, DType::float32, {3});
        const Tensor total = bench.output("total", DType::float32, {1});
        const auto call = [&](const Tensor& t, const Tensor& v) {
            return contract_violation("sum", [&] { device.backend->sum({.total = t, .values = v}); });
        };
        CHECK(call(Tensor(), values) == "");
        CHECK(call(total, Tensor()) == "");
        CHECK(call(values, values) == "");
        CHECK(call(with_dtype(total, DType::int32), values) == "");
        CHECK(call(total, with_dtype(values, DType::int32)) == "");
        CHECK(call(total, with_dtype(values, DType::bfloat16)) == "");
    }
}

// ---- the harness itself

TEST_CASE("a bench notices writes outside of tensors and into inputs", "[harness][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        const unsigned char byte = 7;
        for (int64_t offset : {-64, -1, 0, 11, 12, 75}) {
            INFO("byte " << offset);
            Bench bench(*device.backend);
            const Tensor input = bench.input("values", {1, 2, 3}, DType::float32, {3});
            const Tensor output = bench.output("result", DType::float32, {3});
            CHECK(bench.damage() == "");
            device.backend->copy_to_device(static_cast<char*>(output.data) + offset, &byte, 1);
            CHECK((bench.damage() == "") == (offset == 0 || offset == 11));
            device.backend->copy_to_device(static_cast<char*>(input.data) + offset, &byte, 1);
            CHECK(bench.damage().find("values") != std::string::npos);
        }
        Bench bench(*device.backend);
        CHECK(std::isnan(bench.read(bench.output("result", DType::bfloat16, {1}))[0]));
        CHECK_THROWS_AS(bench.input("values", {0.1}, DType::bfloat16, {1}), std::logic_error);
        CHECK_THROWS_AS(bench.input("values", {1, 2}, DType::float32, {3}), std::logic_error);
    }
}

TEST_CASE("comparisons notice what they are made for", "[harness]") {
    reference::Result expected(2);
    expected.value = {1, 1000};
    expected.magnitude = {1, 1000};
    CHECK(difference({1, 1000}, expected, DType::float32, 0) == "");
    CHECK(difference({1 + 0x1p-23, 1000}, expected, DType::float32, 0) != "");
    CHECK(difference({1 + 0x1p-23, 1000}, expected, DType::float32, 0x1p-23) == "");
    CHECK(difference({1 + 0x1p-7, 1000}, expected, DType::bfloat16, 0) != "");
    CHECK(difference({1 + 0x1p-8, 1000}, expected, DType::bfloat16, 0) == "");
    CHECK(difference({std::nan(""), 1000}, expected, DType::float32, 1) != "");
    CHECK(difference({1}, expected, DType::float32, 1) != "");
    CHECK(difference({1, 1001}, expected, DType::float32, 1) !=
          "");  // each element passes, the norm does not
    CHECK(inequality({0, 1}, {-0.0, 1}) == "");
    CHECK(inequality({std::nan("")}, {std::nan("")}) != "");
    SameBits same;
    const BackendUnderTest first{"first", "device", nullptr}, second{"second", "device", nullptr};
    const BackendUnderTest other{"other", "other device", nullptr};
    CHECK(same.check(first, "y", {0.0}) == "");
    CHECK(same.check(second, "y", {-0.0}) != "");
    CHECK(same.check(second, "y", {0.0}) == "");
    CHECK(same.check(other, "y", {1}) == "");
}

TEST_CASE("a contract check tells the right error from all others", "[harness]") {
    CHECK(contract_violation("sum", [] { throw std::logic_error("sum: values"); }) == "");
    CHECK(contract_violation("sum", [] { throw std::logic_error("values"); }) != "");
    CHECK(contract_violation("sum", [] { throw std::runtime_error("sum: values"); }) != "");
    CHECK(contract_violation("sum", [] {}) != "");
}
