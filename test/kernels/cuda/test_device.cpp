// The device of the CUDA backend: scratch memory, and work that is recorded and replayed.
#include <memory>
#include <stdexcept>
#include <vector>

#include "kernels/cuda/platform/device.h"
#include "test/support/catch.h"

using namespace train_qat;
using CU_BACKEND::Device;
using CU_BACKEND::DeviceBuffer;

namespace {

constexpr ReplayKey key{nullptr, 1, false, false};

// Work that zeroes `memory`, replayed `calls` times; counts in `runs` how often it ran instead.
void replay_zeroes(Device& device, void* memory, int64_t bytes, int calls, int* runs) {
    for (int call = 0; call < calls; ++call)
        device.replay(key, [&] {
            ++*runs;
            device.runtime().fill_zero(memory, bytes);
        });
}

}  // namespace

// Scratch memory is released while the device ends, and drops the records that may hold its address.
TEST_CASE("a device may end with scratch memory and records", "[cuda][memory]") {
    const int64_t before = Device({}).runtime().available_memory();
    {
        const auto device = std::make_unique<Device>(CudaOptions{});
        int runs = 0;
        replay_zeroes(*device, device->scratch(1000), 1000, 3, &runs);
        CHECK(runs == 2);
    }
    CHECK(Device({}).runtime().available_memory() == before);
}

TEST_CASE("a record is replayed until memory is released", "[cuda][memory]") {
    Device device({});
    DeviceBuffer memory(device, 4), other(device, 4);
    int runs = 0;
    replay_zeroes(device, memory.data(), 4, 3, &runs);
    CHECK(runs == 2);
    const std::vector<unsigned char> ones(4, 1);
    device.runtime().copy_to_device(memory.data(), ones.data(), 4);
    replay_zeroes(device, memory.data(), 4, 1, &runs);
    CHECK(runs == 2);
    std::vector<unsigned char> read(4, 7);
    device.runtime().copy_to_host(read.data(), memory.data(), 4);
    CHECK(read == std::vector<unsigned char>(4, 0));

    other = DeviceBuffer();
    replay_zeroes(device, memory.data(), 4, 3, &runs);
    CHECK(runs == 4);
}

TEST_CASE("scratch memory grows, but not in recorded work", "[cuda][memory]") {
    Device device({});
    void* const small = device.scratch(100);
    CHECK(device.scratch(50) == small);
    int64_t bytes = 100;
    const auto work = [&] { device.scratch(bytes); };
    device.replay(key, work);
    bytes = 1000000;
    CHECK_THROWS_AS(device.replay(key, work), std::logic_error);
    device.scratch(bytes);
    for (int call = 0; call < 3; ++call) CHECK_NOTHROW(device.replay(key, work));
}
