// A matmul and what follows it: the same as one after the other, on every device.
#include <string>
#include <vector>

#include "test/kernels/combined_fixture.h"
#include "test/support/catch.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

class Names final : public OperationObserver {
  public:
    void observe(const char* operation, const OperationCost& cost,
                 const std::function<void()>& compute) override {
        names.push_back(operation);
        flops += cost.flops;
        bytes += cost.bytes;
        compute();
    }
    std::vector<std::string> names;
    double flops = 0, bytes = 0;
};

}  // namespace

TEST_CASE("matmul_rope_forward is a matmul and a rotation", "[matmul_rope_forward][device]") {
    for (uint64_t seed : {1, 2})
        for (DType type : compute_types())
            for (const bool scaled : {false, true}) {
                Random random(seed);
                const int64_t kv_heads = random.integer(1, 2), D = random.pick<int64_t>({6, 32, 64});
                const AttentionShape s{random.integer(1, 2), random.integer(1, 40),
                                       kv_heads * random.integer(1, 2), kv_heads, D};
                const RopeCase c{s, random.integer(1, 90), scaled, type, seed};
                // In bfloat16 the product is rounded before it is turned.
                const double slack = float32_sum(c.K) + (type == DType::bfloat16 ? 0x1p-8 : 0x1p-21);
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << " " << text(c));
                    Backend& backend = *device.backend;
                    const CombinedOutcome joint =
                        matmul_rope(backend, c, slack,
                                    [&](const MatmulRopeForward& a) { backend.matmul_rope_forward(a); });
                    CHECK(joint.wrong == "");
                    const CombinedOutcome parts =
                        matmul_rope(backend, c, slack, [&](const MatmulRopeForward& a) {
                            backend.matmul_forward(a.matmul);
                            backend.rope_forward(a.rope);
                        });
                    CHECK(inequality(joint.first, parts.first) == "");
                }
            }
}

TEST_CASE("matmul_swiglu_forward is a matmul and SwiGLU", "[matmul_swiglu_forward][device]") {
    for (uint64_t seed : {1, 2})
        for (DType type : compute_types())
            for (const bool scaled : {false, true}) {
                Random random(seed);
                const SwigluCase c{
                    random.integer(1, 70), random.integer(1, 80), random.integer(1, 90), scaled, type, seed};
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << " " << text(c));
                    Backend& backend = *device.backend;
                    const CombinedOutcome joint = matmul_swiglu(
                        backend, c, [&](const MatmulSwigluForward& a) { backend.matmul_swiglu_forward(a); });
                    CHECK(joint.wrong == "");
                    const CombinedOutcome parts =
                        matmul_swiglu(backend, c, [&](const MatmulSwigluForward& a) {
                            backend.matmul_forward(a.matmul);
                            backend.swiglu_forward(a.swiglu);
                        });
                    CHECK(inequality(joint.first, parts.first) == "");
                    CHECK(inequality(joint.second, parts.second) == "");
                }
            }
}

TEST_CASE("an observer sees both parts of a combined operation",
          "[matmul_swiglu_forward][matmul_rope_forward]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        INFO(device.name);
        Names observer;
        OperationCost cost;
        const DType type = DType::float32;
        device.backend->set_observer(&observer);
        matmul_swiglu(*device.backend, {3, 5, 7, false, type}, [&](const MatmulSwigluForward& a) {
            observer = Names();
            cost = a.cost();
            device.backend->matmul_swiglu_forward(a);
        });
        CHECK(observer.names == std::vector<std::string>{"matmul_forward", "swiglu_forward"});
        CHECK(observer.flops == cost.flops);
        CHECK(observer.bytes == cost.bytes);
        matmul_rope(*device.backend, {{1, 2, 1, 1, 4}, 5, false, type}, 1e-5,
                    [&](const MatmulRopeForward& a) {
                        observer = Names();
                        cost = a.cost();
                        device.backend->matmul_rope_forward(a);
                    });
        CHECK(observer.names == std::vector<std::string>{"matmul_forward", "rope_forward"});
        CHECK(observer.flops == cost.flops);
        CHECK(observer.bytes == cost.bytes);
        device.backend->set_observer(nullptr);
    }
}

TEST_CASE("parts of a combined operation that do not fit are refused",
          "[matmul_swiglu_forward][matmul_rope_forward][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        INFO(device.name);
        Backend& backend = *device.backend;
        const DType type = DType::float32;
        matmul_swiglu(backend, {2, 3, 4, false, type}, [&](const MatmulSwigluForward& a) {
            MatmulSwigluForward other = {a.matmul, a.swiglu};
            other.swiglu.gate_up.data = static_cast<char*>(a.swiglu.gate_up.data) + 4;
            CHECK(contract_violation("matmul_swiglu_forward",
                                     [&] { backend.matmul_swiglu_forward(other); }) == "");
            backend.matmul_swiglu_forward(a);
        });
        matmul_rope(backend, {{1, 2, 1, 1, 2}, 4, false, type}, 1e-5, [&](const MatmulRopeForward& a) {
            MatmulRopeForward other = {a.matmul, a.rope};
            other.rope.qkv.data = static_cast<char*>(a.rope.qkv.data) + 4;
            CHECK(contract_violation("matmul_rope_forward", [&] { backend.matmul_rope_forward(other); }) ==
                  "");
            backend.matmul_rope_forward(a);
        });
    }
}
