// The device runtime on a GPU: what kernels/cuda/platform/runtime.h says, by the CUDA runtime library.
#include "kernels/cuda/platform/runtime.h"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

#include "kernels/cuda/platform/cuda_options.h"
#include "kernels/cuda/platform/data_sheet.h"

#if defined(TRAIN_QAT_CUBLASLT)
#include <cublasLt.h>
#endif
#if defined(TRAIN_QAT_NCCL)
#include <nccl.h>
#endif

namespace train_qat {

namespace {

std::string version_text(int version) {  // 13000 -> 13.0
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

const char* hint_of(cudaError_t status) {
    switch (status) {
        case cudaErrorMemoryAllocation:
            return "; use a smaller model, -batch or -seq_len";
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorUnsupportedPtxVersion:
            return "; this program holds no code for this GPU: build it again with "
                   "CMAKE_FLAGS=-DTRAIN_QAT_CUDA_ARCHITECTURES=native";
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchFailure:
        case cudaErrorAssert:
        case cudaErrorMisalignedAddress:
            return "; a kernel failed: CUDA_LAUNCH_BLOCKING=1 names it, compute-sanitizer its line";
        case cudaErrorInvalidDeviceFunction:
        case cudaErrorInvalidConfiguration:
        case cudaErrorInvalidValue:
            return "; this is a bug of train_qat";
        default:
            return "";
    }
}

}  // namespace

std::string cuda_unavailable(int device) {
    int driver = 0, toolkit = 0, count = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&toolkit);
    if (driver == 0) return "no NVIDIA driver is installed";
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver)
        return "the NVIDIA driver supports CUDA " + version_text(driver) + ", this program needs " +
               version_text(toolkit) + ": update the driver";
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
        return "no CUDA device is visible (CUDA_VISIBLE_DEVICES may hide it)";
    if (status != cudaSuccess) return cudaGetErrorString(status);
    if (device >= count)
        return "there is no CUDA device " + std::to_string(device) + ", only " + std::to_string(count);
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (major < 8)
        return "CUDA device " + std::to_string(device) + " has compute capability " + std::to_string(major) +
               "." + std::to_string(minor) + ", the kernels need 8.0 (Ampere) or later";
    return "";
}

namespace CU_BACKEND {

void check_cuda(cudaError_t status, const char* what, const char* file, int line) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // told here; or the next launch would tell it as its own
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status) + " (" + file +
                             ":" + std::to_string(line) + ")" + hint_of(status));
}

void allow_shared_memory(const void* kernel, int64_t bytes, const char* name, const char* file, int line) {
    constexpr int64_t always_allowed = 48 * 1024;
    if (bytes <= always_allowed) return;
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        name, file, line);
}

namespace {

class CudaGraph final : public Graph {
  public:
    explicit CudaGraph(cudaGraph_t graph) {
        const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
        cudaGraphDestroy(graph);
        CU_CALL(status);
    }
    ~CudaGraph() override { cudaGraphExecDestroy(executable); }
    cudaGraphExec_t executable = nullptr;
};

int attribute(cudaDeviceAttr name, int device) {
    int value = 0;
    CU_CALL(cudaDeviceGetAttribute(&value, name, device));
    return value;
}

std::string library_versions() {
    int toolkit = 0;
    CU_CALL(cudaRuntimeGetVersion(&toolkit));
    std::string text = "CUDA " + version_text(toolkit);
#if defined(TRAIN_QAT_CUBLASLT)
    text += ", cuBLASLt " + std::to_string(cublasLtGetVersion());
#endif
#if defined(TRAIN_QAT_NCCL)
    int nccl = 0;
    if (ncclGetVersion(&nccl) == ncclSuccess) text += ", NCCL " + std::to_string(nccl);
#endif
    return text;
}

DeviceProperties read_properties(int device) {
    cudaDeviceProp card;
    CU_CALL(cudaGetDeviceProperties(&card, device));
    DeviceProperties result;
    result.name = card.name;
    result.libraries = library_versions();
    result.major = card.major;
    result.minor = card.minor;
    result.multiprocessors = card.multiProcessorCount;
    result.memory = static_cast<int64_t>(card.totalGlobalMem);
    result.shared_memory_per_block = static_cast<int64_t>(card.sharedMemPerBlockOptin);
    const double kilohertz = 1e3, bits_per_byte = 8, transfers_per_clock = 2;
    result.memory_bandwidth = transfers_per_clock * attribute(cudaDevAttrMemoryClockRate, device) *
                              kilohertz * attribute(cudaDevAttrGlobalMemoryBusWidth, device) / bits_per_byte;
    const double clock = attribute(cudaDevAttrClockRate, device) * kilohertz;
    result.bfloat16_flops =
        bfloat16_peak_flops(result.name, card.major, card.minor, card.multiProcessorCount, clock);
    const double float32_lanes = card.major == 8 && card.minor == 0 ? 64 : 128;  // of a multiprocessor
    result.float32_flops = 2 * float32_lanes * card.multiProcessorCount * clock;
    return result;
}

// A piece of pinned host memory and its twin on the device. Copies to the host use the host's piece alone.
struct CopySlot {
    void* host = nullptr;
    void* device = nullptr;
    cudaEvent_t arrived = nullptr;   // the piece is where it was sent
    cudaEvent_t consumed = nullptr;  // and has been copied on to where it belongs
};
constexpr int64_t copy_slot_bytes = 4 << 20;

}  // namespace

struct Runtime::State {
    int device = 0;
    DeviceProperties properties;
    cudaStream_t stream = nullptr, copy_stream = nullptr;
    std::array<CopySlot, 4> slots;
    size_t next_slot = 0;
    cudaEvent_t start = nullptr, stop = nullptr;
};

Runtime::Runtime(int device) : state_(std::make_unique<State>()) {
    const std::string reason = cuda_unavailable(device);
    if (!reason.empty())
        throw std::runtime_error("no CUDA device to use: " + reason + "; or use -device cpu");
    CU_CALL(cudaSetDevice(device));
    state_->device = device;
    state_->properties = read_properties(device);
    CU_CALL(cudaStreamCreateWithFlags(&state_->stream, cudaStreamNonBlocking));
    CU_CALL(cudaStreamCreateWithFlags(&state_->copy_stream, cudaStreamNonBlocking));
    for (CopySlot& slot : state_->slots) {
        CU_CALL(cudaMallocHost(&slot.host, copy_slot_bytes));
        CU_CALL(cudaMalloc(&slot.device, copy_slot_bytes));
        CU_CALL(cudaEventCreateWithFlags(&slot.arrived, cudaEventDisableTiming));
        CU_CALL(cudaEventCreateWithFlags(&slot.consumed, cudaEventDisableTiming));
    }
    CU_CALL(cudaEventCreate(&state_->start));
    CU_CALL(cudaEventCreate(&state_->stop));
}

// Errors at the end of a process have nobody to hear them.
Runtime::~Runtime() {
    cudaStreamSynchronize(state_->stream);
    cudaEventDestroy(state_->start);
    cudaEventDestroy(state_->stop);
    for (CopySlot& slot : state_->slots) {
        cudaFreeHost(slot.host);
        cudaFree(slot.device);
        cudaEventDestroy(slot.arrived);
        cudaEventDestroy(slot.consumed);
    }
    cudaStreamDestroy(state_->copy_stream);
    cudaStreamDestroy(state_->stream);
}

const DeviceProperties& Runtime::properties() const {
    return state_->properties;
}

CuStream Runtime::stream() const {
    return state_->stream;
}

int64_t Runtime::available_memory() const {
    size_t available = 0, total = 0;
    CU_CALL(cudaMemGetInfo(&available, &total));
    return static_cast<int64_t>(available);
}

void* Runtime::allocate(int64_t bytes) {
    void* memory = nullptr;
    const std::string request = "allocation of " + std::to_string(bytes) + " bytes";
    check_cuda(cudaMalloc(&memory, static_cast<size_t>(bytes)), request.c_str(), __FILE__, __LINE__);
    fill_zero(memory, bytes);
    return memory;
}

void Runtime::release(void* memory) {
    cudaFree(memory);
}

void Runtime::copy_to_device(void* device, const void* host, int64_t bytes) {
    for (int64_t done = 0; done < bytes; done += copy_slot_bytes) {
        const auto piece = static_cast<size_t>(std::min(copy_slot_bytes, bytes - done));
        CopySlot& slot = state_->slots[state_->next_slot++ % state_->slots.size()];
        CU_CALL(cudaEventSynchronize(slot.consumed));
        std::memcpy(slot.host, static_cast<const char*>(host) + done, piece);
        CU_CALL(cudaMemcpyAsync(slot.device, slot.host, piece, cudaMemcpyHostToDevice, state_->copy_stream));
        CU_CALL(cudaEventRecord(slot.arrived, state_->copy_stream));
        CU_CALL(cudaStreamWaitEvent(state_->stream, slot.arrived));
        CU_CALL(cudaMemcpyAsync(static_cast<char*>(device) + done, slot.device, piece,
                                cudaMemcpyDeviceToDevice, state_->stream));
        CU_CALL(cudaEventRecord(slot.consumed, state_->stream));
    }
}

// Much memory comes through two pinned pieces in turn: one is on its way while the other one is taken out.
void Runtime::copy_to_host(void* host, const void* device, int64_t bytes) {
    if (bytes <= copy_slot_bytes) {
        if (bytes > 0)
            CU_CALL(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                                    state_->stream));
        return synchronize();
    }
    const int64_t pieces = (bytes + copy_slot_bytes - 1) / copy_slot_bytes;
    const auto slot_of = [this](int64_t piece) -> CopySlot& { return state_->slots[piece % 2]; };
    const auto bytes_of = [bytes](int64_t piece) {
        return static_cast<size_t>(std::min(copy_slot_bytes, bytes - piece * copy_slot_bytes));
    };
    for (int64_t piece = 0; piece < 2; ++piece)
        CU_CALL(cudaEventSynchronize(slot_of(piece).arrived));  // of an upload
    for (int64_t piece = 0; piece <= pieces; ++piece) {
        if (piece < pieces) {
            const CopySlot& slot = slot_of(piece);
            CU_CALL(cudaMemcpyAsync(slot.host, static_cast<const char*>(device) + piece * copy_slot_bytes,
                                    bytes_of(piece), cudaMemcpyDeviceToHost, state_->stream));
            CU_CALL(cudaEventRecord(slot.arrived, state_->stream));
        }
        if (piece == 0) continue;
        const CopySlot& slot = slot_of(piece - 1);
        CU_CALL(cudaEventSynchronize(slot.arrived));
        std::memcpy(static_cast<char*>(host) + (piece - 1) * copy_slot_bytes, slot.host, bytes_of(piece - 1));
    }
}

void Runtime::fill_zero(void* device, int64_t bytes) {
    if (bytes > 0) CU_CALL(cudaMemsetAsync(device, 0, static_cast<size_t>(bytes), state_->stream));
}

void Runtime::synchronize() {
    CU_CALL(cudaStreamSynchronize(state_->stream));
}

std::unique_ptr<Graph> Runtime::record(const std::function<void()>& work) {
    cudaGraph_t graph = nullptr;
    CU_CALL(cudaStreamBeginCapture(state_->stream, cudaStreamCaptureModeThreadLocal));
    try {
        work();
    } catch (...) {
        cudaStreamEndCapture(state_->stream, &graph);
        if (graph != nullptr) cudaGraphDestroy(graph);
        throw;
    }
    CU_CALL(cudaStreamEndCapture(state_->stream, &graph));
    return std::make_unique<CudaGraph>(graph);
}

void Runtime::launch(Graph& graph) {
    CU_CALL(cudaGraphLaunch(static_cast<CudaGraph&>(graph).executable, state_->stream));
}

double Runtime::seconds(const std::function<void()>& work, int repetitions) {
    work();
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < repetitions; ++i) {
        CU_CALL(cudaEventRecord(state_->start, state_->stream));
        work();
        CU_CALL(cudaEventRecord(state_->stop, state_->stream));
        CU_CALL(cudaEventSynchronize(state_->stop));
        float milliseconds = 0;
        CU_CALL(cudaEventElapsedTime(&milliseconds, state_->start, state_->stop));
        best = std::min(best, milliseconds * 1e-3);
    }
    return best;
}

}  // namespace CU_BACKEND
}  // namespace train_qat
