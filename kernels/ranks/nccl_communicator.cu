// Collectives by NCCL, on a stream beside the device's. What is recorded into a CUDA graph is what is enqueued
// otherwise:
//   * events that fork the stream off the device's and join them again,
//   * NCCL's own kernels,
//   * two counters around them that tell the watchdog of progress, also when a graph is replayed.
// Built only with NCCL 2.14 or later, the first whose communicators need not block; otherwise nccl_absent.cpp.
#include "kernels/ranks/nccl_communicator.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/ranks/nccl_connection.cuh"
#include "kernels/ranks/watchdog.h"

namespace train_qat {

namespace CU_BACKEND {

namespace {

enum Operation : uint32_t { joining, reduce_scatter, all_gather, broadcast, gather_on_host, leaving };
const char* const operation_names[] = {"joining",   "reduce_scatter", "all_gather",
                                       "broadcast", "gather_on_host", "leaving"};

// In host memory that the device writes to.
struct Heartbeat {
    uint32_t begun, finished, operation;
};

__global__ void count_begun(volatile Heartbeat* heartbeat, uint32_t operation) {
    heartbeat->operation = operation;
    heartbeat->begun = heartbeat->begun + 1;
    __threadfence_system();
}

__global__ void count_finished(volatile Heartbeat* heartbeat) {
    heartbeat->finished = heartbeat->finished + 1;
    __threadfence_system();
}

#define NCCL_CALL(call) finish([&](ncclComm_t& communicator) { return call; }, #call, __FILE__, __LINE__)

class NcclCommunicator final : public Communicator {
  public:
    NcclCommunicator(Device& device, int rank, int size, const NcclId& id, double timeout_seconds)
        : Communicator(rank, size),
          device_(device),
          exceptions_(std::uncaught_exceptions()),
          staging_(device, smallest_staging),
          host_staging_(std::make_unique<PinnedMemory>(smallest_staging)),
          watchdog_(hooks(), WatchdogTimes{.timeout = timeout_seconds}) {
        CU_CALL(cudaGetDevice(&connection_->device));
        join(id);
    }
    ~NcclCommunicator() override;
    bool recordable() const override { return true; }
    std::string describe() const override {
        int version = 0;
        ncclGetVersion(&version);
        return std::to_string(size()) + " ranks over NCCL " + std::to_string(version / 10000) + "." +
               std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
    }

  private:
    // Collectives for which wait() has not been called yet.
    enum class Pending { none, enqueued, recorded };
    static constexpr int64_t smallest_staging = 64 << 10;

    void start_reduce_scatter(std::span<const RankRows> arrays) override;
    void start_all_gather(std::span<const RankRows> arrays) override;
    void start_broadcast(void* data, int64_t bytes, int root) override;
    void order_after() override;
    void gather_host_rows(void* data, int64_t bytes) override;

    WatchdogHooks hooks();
    RankProgress progress() const;
    void join(const NcclId& id);
    void leave();
    bool is_recording() const;
    void begin(Operation operation);
    void end();
    template <typename Enqueue>
    void group(const Enqueue& enqueue);
    template <typename Call>
    void finish(const Call& call, const char* what, const char* file, int line);
    std::unique_lock<std::timed_mutex> use_connection();
    void wait_for(cudaStream_t stream);
    void reserve_staging(int64_t bytes);
    int64_t part_begin(const RankRows& array, int rank) const {
        return first_row(array.rows, rank, size()) * array.row_bytes;
    }
    int64_t part_bytes(const RankRows& array, int rank) const {
        return part_begin(array, rank + 1) - part_begin(array, rank);
    }

    Device& device_;
    const int exceptions_;  // under way when this was made
    const std::shared_ptr<Connection> connection_ = std::make_shared<Connection>();
    Stream stream_;
    Event computed_, communicated_;
    Pending pending_ = Pending::none;
    PinnedMemory heartbeat_{sizeof(Heartbeat)};
    Heartbeat* const device_heartbeat_ = static_cast<Heartbeat*>(heartbeat_.device_data());
    DeviceBuffer staging_;  // for gather_on_host, with its twin in host memory
    std::unique_ptr<PinnedMemory> host_staging_;
    bool left_ = false;
    Watchdog watchdog_;  // looks at the members above
};

// ---- joining and leaving

WatchdogHooks NcclCommunicator::hooks() {
    WatchdogHooks hooks;
    hooks.rank = "rank " + std::to_string(rank()) + " of " + std::to_string(size());
    hooks.progress = [this] { return progress(); };
    hooks.error = [connection = connection_] { return connection->error(); };
    hooks.abort = [connection = connection_] { connection->abort(); };
    return hooks;
}

RankProgress NcclCommunicator::progress() const {
    const auto* heartbeat = static_cast<const volatile Heartbeat*>(heartbeat_.data());
    const uint32_t begun = heartbeat->begun, finished = heartbeat->finished;
    const uint32_t operation = begun != finished ? heartbeat->operation : connection_->operation.load();
    return {begun + connection_->begun.load(), finished + connection_->finished.load(),
            operation_names[operation]};
}

void NcclCommunicator::join(const NcclId& id) {
    ncclUniqueId unique;
    static_assert(sizeof(unique.internal) == sizeof(id.bytes));
    std::memcpy(unique.internal, id.bytes.data(), sizeof(unique.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    try {
        NCCL_CALL(ncclCommInitRankConfig(&communicator, size(), unique, rank(), &config));
    } catch (...) {
        watchdog_.abort(WatchdogTimes().until_thrown);  // the destructor will not run
        throw;
    }
}

// Finalizing waits for the end of all graphs that hold collectives; releasing memory of the device drops them.
void NcclCommunicator::leave() {
    connection_->operation = leaving;
    wait_for(device_.stream());
    wait_for(stream_.get());
    staging_ = DeviceBuffer();
    NCCL_CALL(ncclCommFinalize(communicator));
    const auto lock = use_connection();
    ncclCommDestroy(std::exchange(connection_->communicator, nullptr));
    left_ = true;
}

NcclCommunicator::~NcclCommunicator() {
    // The others may wait for a rank that leaves because of an error: finalizing would wait for them.
    if (!watchdog_.failed() && std::uncaught_exceptions() == exceptions_) {
        try {
            leave();
        } catch (const std::exception&) {  // then abort
        }
    }
    if (left_ || watchdog_.abort(WatchdogTimes().until_thrown)) return;
    watchdog_.fail("the connection to the other ranks can neither be closed nor aborted");
    while (!watchdog_.abort(1)) {  // the watchdog ends the process
    }
}

// ---- calling NCCL

std::unique_lock<std::timed_mutex> NcclCommunicator::use_connection() {
    std::unique_lock lock(connection_->use, std::defer_lock);
    while (!lock.try_lock_for(std::chrono::milliseconds(100))) watchdog_.throw_if_failed();
    watchdog_.throw_if_failed();  // `communicator` may be gone
    return lock;
}

// Calls NCCL and waits until the host's part is done: kernels are then in their streams.
template <typename Call>
void NcclCommunicator::finish(const Call& call, const char* what, const char* file, int line) {
    ++connection_->begun;
    ncclResult_t result = ncclSuccess;
    std::string error;
    {
        const auto lock = use_connection();
        result = call(connection_->communicator);
        if (is_error(result)) error = error_text(result, connection_->communicator);
    }
    while (result == ncclInProgress) {
        std::this_thread::sleep_for(std::chrono::microseconds(10));
        const auto lock = use_connection();
        const ncclResult_t asked = ncclCommGetAsyncError(connection_->communicator, &result);
        if (is_error(asked)) result = asked;
        if (is_error(result)) error = error_text(result, connection_->communicator);
    }
    ++connection_->finished;
    if (!is_error(result)) return;
    watchdog_.fail(error + " (" + what + ", " + file + ":" + std::to_string(line) + ")" + nccl_hint(result));
    watchdog_.throw_if_failed();
}

template <typename Enqueue>
void NcclCommunicator::group(const Enqueue& enqueue) {
    const auto calls = [&](ncclComm_t communicator) {
        Group group(communicator, stream_.get());
        const ncclResult_t begun = ncclGroupStart();
        if (is_error(begun)) return begun;
        enqueue(group);
        const ncclResult_t ended = ncclGroupEnd();
        return is_error(group.result()) ? group.result() : ended;
    };
    finish(calls, operation_names[connection_->operation], __FILE__, __LINE__);
}

// ---- collectives

bool NcclCommunicator::is_recording() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    CU_CALL(cudaStreamIsCapturing(device_.stream(), &status));
    return status == cudaStreamCaptureStatusActive;
}

void NcclCommunicator::begin(Operation operation) {
    watchdog_.throw_if_failed();
    const bool recording = is_recording();
    if (recording && pending_ == Pending::enqueued)
        throw std::logic_error("NcclCommunicator: recorded work follows collectives without wait()");
    pending_ = recording ? Pending::recorded : Pending::enqueued;
    connection_->operation = operation;
    computed_.order(device_.stream(), stream_.get());
    CU_LAUNCH(count_begun, 1, 1, 0, stream_.get(), device_heartbeat_, static_cast<uint32_t>(operation));
}

void NcclCommunicator::end() {
    CU_LAUNCH(count_finished, 1, 1, 0, stream_.get(), device_heartbeat_);
}

void NcclCommunicator::start_reduce_scatter(std::span<const RankRows> arrays) {
    begin(Operation::reduce_scatter);
    group([&](Group& group) {
        for (const RankRows& array : arrays) {
            auto* const bytes = static_cast<char*>(array.data);
            if (array.rows % size() == 0) {
                const int64_t own = part_bytes(array, rank());
                if (own > 0)
                    group.reduce_scatter(static_cast<float*>(array.data), rank(), own / sizeof(float));
                continue;
            }
            for (int owner = 0; owner < size(); ++owner) {
                const int64_t count = part_bytes(array, owner) / static_cast<int64_t>(sizeof(float));
                if (count == 0) continue;
                group.reduce(reinterpret_cast<float*>(bytes + part_begin(array, owner)), count, owner);
            }
        }
    });
    end();
}

void NcclCommunicator::start_all_gather(std::span<const RankRows> arrays) {
    begin(Operation::all_gather);
    group([&](Group& group) {
        for (const RankRows& array : arrays) {
            auto* const bytes = static_cast<char*>(array.data);
            if (array.rows % size() == 0) {
                const int64_t own = part_bytes(array, rank());
                if (own > 0) group.all_gather(bytes, rank(), own);
                continue;
            }
            for (int owner = 0; owner < size(); ++owner) {
                const int64_t count = part_bytes(array, owner);
                if (count > 0) group.broadcast(bytes + part_begin(array, owner), count, owner);
            }
        }
    });
    end();
}

void NcclCommunicator::start_broadcast(void* data, int64_t bytes, int root) {
    if (bytes == 0) return;
    begin(Operation::broadcast);
    group([&](Group& group) { group.broadcast(static_cast<char*>(data), bytes, root); });
    end();
}

void NcclCommunicator::order_after() {
    watchdog_.throw_if_failed();
    const bool recording = is_recording();
    const Pending pending = std::exchange(pending_, Pending::none);
    if (pending == Pending::none) return;
    if (pending == Pending::enqueued && recording)
        throw std::logic_error("NcclCommunicator: wait() in recorded work, for collectives outside of it");
    if (pending == Pending::recorded && !recording) return;  // of a recording that failed
    communicated_.order(stream_.get(), device_.stream());
}

// Without blocking in CUDA: so that a failure is met even where the abort hangs.
void NcclCommunicator::wait_for(cudaStream_t stream) {
    for (;;) {
        const cudaError_t status = cudaStreamQuery(stream);
        watchdog_.throw_if_failed();  // aborted collectives end as if nothing were wrong
        if (status == cudaSuccess) return;
        if (status != cudaErrorNotReady) CU_CALL(status);
        cudaGetLastError();  // or the next launch would find "not ready"
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
}

void NcclCommunicator::reserve_staging(int64_t bytes) {
    if (bytes <= staging_.bytes()) return;
    wait_for(device_.stream());
    wait_for(stream_.get());
    host_staging_ = std::make_unique<PinnedMemory>(bytes);
    staging_ = DeviceBuffer(device_, bytes);
}

void NcclCommunicator::gather_host_rows(void* data, int64_t bytes) {
    if (is_recording()) throw std::logic_error("NcclCommunicator: gather_on_host in recorded work");
    const int64_t row = std::max<int64_t>(bytes, 1);
    reserve_staging(row * size());
    auto* const rows = static_cast<char*>(data);
    auto* const host = static_cast<char*>(host_staging_->data());
    auto* const device = static_cast<char*>(staging_.data());
    std::memcpy(host + rank() * row, rows + rank() * bytes, static_cast<size_t>(bytes));
    begin(Operation::gather_on_host);
    CU_CALL(cudaMemcpyAsync(device + rank() * row, host + rank() * row, static_cast<size_t>(row),
                            cudaMemcpyHostToDevice, stream_.get()));
    group([&](Group& group) { group.all_gather(device, rank(), row); });
    CU_CALL(cudaMemcpyAsync(host, device, static_cast<size_t>(row * size()), cudaMemcpyDeviceToHost,
                            stream_.get()));
    end();
    wait_for(stream_.get());
    pending_ = Pending::none;  // the stream is empty
    std::memcpy(rows, host, static_cast<size_t>(bytes * size()));
}

}  // namespace

}  // namespace CU_BACKEND

std::string nccl_unavailable() {
    return "";
}

NcclId new_nccl_id() {
    CU_BACKEND::prefer_rings();
    ncclUniqueId unique;
    const ncclResult_t result = ncclGetUniqueId(&unique);
    if (result != ncclSuccess)
        throw std::runtime_error(CU_BACKEND::error_text(result, nullptr) + " (ncclGetUniqueId, " + __FILE__ +
                                 ":" + std::to_string(__LINE__) + ")" + CU_BACKEND::nccl_hint(result));
    NcclId id;
    std::memcpy(id.bytes.data(), unique.internal, id.bytes.size());
    return id;
}

std::unique_ptr<Communicator> make_nccl_communicator(Backend& backend, int rank, int size, const NcclId& id,
                                                     double timeout_seconds) {
    auto* const cuda = dynamic_cast<CU_BACKEND::CudaBackend*>(&backend);
    if (cuda == nullptr) throw std::logic_error("make_nccl_communicator: needs a CUDA backend");
    CU_BACKEND::prefer_rings();
    return std::make_unique<CU_BACKEND::NcclCommunicator>(cuda->device(), rank, size, id, timeout_seconds);
}

}  // namespace train_qat
