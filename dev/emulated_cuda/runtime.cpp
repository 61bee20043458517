// The device runtime in the emulator: kernels/cuda/platform/runtime.h with host memory, where everything is done as
// soon as it is asked for.
#include "kernels/cuda/platform/runtime.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "dev/emulator/emulator.h"
#include "dev/emulator/launch.h"
#include "dev/emulator/machine/global_memory.h"
#include "dev/emulator/machine/shared_memory.h"

namespace train_qat::CU_BACKEND {

namespace {

using emulator::GlobalMemory;

class EmulatedGraph final : public Graph {
  public:
    std::vector<std::function<void()>> work;
};

void check_range(const char* operation, const void* device, int64_t bytes) {
    if (bytes <= 0) return;
    const emulator::Allocation* allocation = GlobalMemory::instance().find(device);
    if (allocation == nullptr || !allocation->contains(device, bytes))
        throw std::runtime_error(std::string("emulated CUDA device: ") + operation + " of " +
                                 std::to_string(bytes) + " bytes that are not all in one allocation");
}

}  // namespace

struct Runtime::State {
    DeviceProperties properties;
    emulator::Stream stream;
    void refuse_while_recording(const char* what) const {
        if (stream.recording != nullptr)
            throw std::runtime_error(std::string("emulated CUDA device: ") + what +
                                     " while work is recorded");
    }
};

Runtime::Runtime(int device) : state_(std::make_unique<State>()) {
    if (device != 0)
        throw std::runtime_error("no CUDA device to use: there is one emulated device, number 0, not " +
                                 std::to_string(device));
    GlobalMemory::instance();  // made now, it outlives devices that live until the end of the process
    DeviceProperties& properties = state_->properties;
    properties.name = "emulated CUDA device";
    const int capability = emulator::settings().compute_capability;
    properties.major = capability / 10;
    properties.minor = capability % 10;
    properties.multiprocessors = 8;
    properties.memory = int64_t{8} << 30;
    properties.shared_memory_per_block = emulator::shared_memory_limit_of(capability);
    properties.libraries = "no libraries";
    // An A100's, so that whoever divides by them gets numbers; nothing here runs at these rates.
    properties.memory_bandwidth = 1.555e12;
    properties.bfloat16_flops = 312e12;
    properties.float32_flops = 19.5e12;
}

Runtime::~Runtime() = default;

const DeviceProperties& Runtime::properties() const {
    return state_->properties;
}

CuStream Runtime::stream() const {
    return &state_->stream;
}

int64_t Runtime::available_memory() const {
    return state_->properties.memory - GlobalMemory::instance().allocated_bytes();
}

void* Runtime::allocate(int64_t bytes) {
    state_->refuse_while_recording("memory is allocated");
    void* memory = GlobalMemory::instance().allocate(bytes);
    if (memory == nullptr)
        throw std::runtime_error("emulated CUDA device: no " + std::to_string(bytes) +
                                 " bytes of memory left");
    return memory;
}

void Runtime::release(void* memory) {
    GlobalMemory::instance().release(memory);
}

void Runtime::copy_to_device(void* device, const void* host, int64_t bytes) {
    state_->refuse_while_recording("host memory is copied");
    check_range("copy_to_device", device, bytes);
    if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}

void Runtime::copy_to_host(void* host, const void* device, int64_t bytes) {
    state_->refuse_while_recording("host memory is copied");
    check_range("copy_to_host", device, bytes);
    if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
}

void Runtime::fill_zero(void* device, int64_t bytes) {
    check_range("fill_zero", device, bytes);
    if (bytes > 0) state_->stream.enqueue([=] { std::memset(device, 0, static_cast<size_t>(bytes)); });
}

void Runtime::synchronize() {
    state_->refuse_while_recording("the host waits");
}

std::unique_ptr<Graph> Runtime::record(const std::function<void()>& work) {
    state_->refuse_while_recording("another recording starts");
    auto graph = std::make_unique<EmulatedGraph>();
    state_->stream.recording = &graph->work;
    try {
        work();
    } catch (...) {
        state_->stream.recording = nullptr;
        throw;
    }
    state_->stream.recording = nullptr;
    return graph;
}

void Runtime::launch(Graph& graph) {
    state_->refuse_while_recording("a graph is launched");
    for (const std::function<void()>& work : static_cast<EmulatedGraph&>(graph).work) work();
}

double Runtime::seconds(const std::function<void()>& work, int repetitions) {
    work();
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < repetitions; ++i) {
        const auto start = std::chrono::steady_clock::now();
        work();
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        best = std::min(best, elapsed.count());
    }
    return best;
}

}  // namespace train_qat::CU_BACKEND
