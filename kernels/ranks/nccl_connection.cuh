// What NcclCommunicator is made of: RAII for CUDA's and NCCL's objects, and NCCL's errors in words.
#pragma once

#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

class PinnedMemory {
  public:
    explicit PinnedMemory(int64_t bytes) {
        CU_CALL(cudaHostAlloc(&data_, static_cast<size_t>(bytes), cudaHostAllocMapped));
        std::memset(data_, 0, static_cast<size_t>(bytes));
    }
    ~PinnedMemory() { cudaFreeHost(data_); }
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;
    void* data() const { return data_; }
    void* device_data() const {
        void* address = nullptr;
        CU_CALL(cudaHostGetDevicePointer(&address, data_, 0));
        return address;
    }

  private:
    void* data_ = nullptr;
};

class Event {
  public:
    Event() { CU_CALL(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    // What is enqueued on `later` from now on comes after what has been enqueued on `earlier`.
    void order(cudaStream_t earlier, cudaStream_t later) {
        CU_CALL(cudaEventRecord(event_, earlier));
        CU_CALL(cudaStreamWaitEvent(later, event_, 0));
    }

  private:
    cudaEvent_t event_ = nullptr;
};

class Stream {
  public:
    // Of high priority: the few blocks of a collective should not queue behind a matmul's.
    Stream() {
        int least = 0, greatest = 0;
        CU_CALL(cudaDeviceGetStreamPriorityRange(&least, &greatest));
        CU_CALL(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }

  private:
    cudaStream_t stream_ = nullptr;
};

inline bool is_error(ncclResult_t result) {
    return result != ncclSuccess && result != ncclInProgress;
}

inline std::string error_text(ncclResult_t result, ncclComm_t communicator) {
    std::string text = std::string("NCCL: ") + ncclGetErrorString(result);
    const char* detail = ncclGetLastError(communicator);
    if (detail != nullptr && *detail != '\0') text += std::string(": ") + detail;
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}

inline const char* nccl_hint(ncclResult_t result) {
    switch (result) {
        case ncclInvalidUsage:
            return "; does every rank have a GPU of its own?";
        case ncclUnhandledCudaError:
        case ncclSystemError:
        case ncclInternalError:
        case ncclRemoteError:
            return "; NCCL_DEBUG=INFO tells more, NCCL_SOCKET_IFNAME chooses the network interface";
        default:
            return "";
    }
}

// Shared with the watchdog's threads. `use` is held during every call of NCCL.
struct Connection {
    std::timed_mutex use;
    ncclComm_t communicator = nullptr;  // null before joining, and after leaving or abort()
    int device = 0;
    // Calls of NCCL by the host, for the watchdog: one that hangs is no progress either.
    std::atomic<uint32_t> begun{0}, finished{0}, operation{0};

    std::string error() {
        const std::unique_lock lock(use, std::try_to_lock);
        if (!lock || communicator == nullptr) return "";
        ncclResult_t state = ncclSuccess;
        const ncclResult_t asked = ncclCommGetAsyncError(communicator, &state);
        if (is_error(asked)) state = asked;
        return is_error(state) ? error_text(state, communicator) : "";
    }
    void abort() {
        ncclComm_t aborted = nullptr;
        {
            const std::unique_lock lock(use, std::chrono::seconds(2));
            if (!lock) return;  // the host hangs in NCCL: only the end of the process helps
            aborted = std::exchange(communicator, nullptr);
        }
        if (aborted == nullptr) return;
        cudaSetDevice(device);
        ncclCommAbort(aborted);
    }
};

// The calls of one group, of which the first error counts.
class Group {
  public:
    Group(ncclComm_t communicator, cudaStream_t stream) : communicator_(communicator), stream_(stream) {}

    void reduce_scatter(float* data, int rank, size_t count) {
        add(ncclReduceScatter(data, data + static_cast<size_t>(rank) * count, count, ncclFloat32, ncclSum,
                              communicator_, stream_));
    }
    void reduce(float* data, size_t count, int root) {
        add(ncclReduce(data, data, count, ncclFloat32, ncclSum, root, communicator_, stream_));
    }
    void all_gather(char* data, int rank, size_t bytes) {
        add(ncclAllGather(data + static_cast<size_t>(rank) * bytes, data, bytes, ncclUint8, communicator_,
                          stream_));
    }
    void broadcast(char* data, size_t bytes, int root) {
        add(ncclBroadcast(data, data, bytes, ncclUint8, root, communicator_, stream_));
    }
    ncclResult_t result() const { return result_; }

  private:
    void add(ncclResult_t result) {
        if (is_error(result) && !is_error(result_)) result_ = result;
    }
    ncclComm_t communicator_;
    cudaStream_t stream_;
    ncclResult_t result_ = ncclSuccess;
};

// Rings add in an order that follows from the connection; NVLink's and the switches' own sums promise none.
// Before the first call of NCCL, which reads this once.
inline void prefer_rings() {
    setenv("NCCL_ALGO", "Ring", 0);
}

}  // namespace train_qat::CU_BACKEND
