// Device and memory of the CPU backend.
#include "kernels/cpu/cpu_backend.h"

#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

#include "kernels/cpu/platform/worker_pool.h"
#include "kernels/cpu/products/elements.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace train_qat {

namespace {

// Arithmetic on denormal numbers is microcoded on most cores: AdamW whose moments decay towards zero runs
// three times slower. Every thread of the pool flushes them.
void flush_denormals_on_all_threads(int threads) {
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040);  // flush-to-zero, denormals-are-zero
#pragma omp parallel num_threads(threads)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
    (void)threads;
}

std::string cpu_model() {
    std::ifstream cpuinfo("/proc/cpuinfo");
    for (std::string line; std::getline(cpuinfo, line);) {
        const size_t colon = line.find(": ");
        if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
    }
    return "CPU";
}

// The instructions that this was compiled for.
const char* instructions(MatmulUnit unit) {
    if (built_for_bfloat16 && unit == MatmulUnit::tiles) return "AMX";
    if (built_for_bfloat16) return "AVX512-BF16";
#if defined(__AVX512F__)
    return "AVX-512";
#elif defined(__AVX2__)
    return "AVX2";
#else
    return "no AVX2";
#endif
}

}  // namespace

CpuBackend::CpuBackend(int threads, MatmulUnit unit)
    : threads_(threads > 0 ? threads : omp_get_max_threads()), matmul_unit_(unit) {
    omp_set_num_threads(threads_);
    flush_denormals_on_all_threads(threads_);
    thread_scratch_.resize(threads_);
}

CpuBackend::~CpuBackend() = default;

std::string CpuBackend::describe() const {
    return cpu_model() + ", " + std::to_string(threads_) + (threads_ == 1 ? " thread, " : " threads, ") +
           instructions(matmul_unit_);
}

int64_t CpuBackend::available_memory() const {
    int64_t available = static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    std::ifstream meminfo("/proc/meminfo");
    for (std::string line; std::getline(meminfo, line);) {
        long long kibibytes = 0;
        if (std::sscanf(line.c_str(), "MemAvailable: %lld kB", &kibibytes) == 1) available = kibibytes * 1024;
    }
    // Containers and job managers may allow less than the machine has; without a limit the file says "max".
    int64_t limit = 0, used = 0;
    if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit &&
        std::ifstream("/sys/fs/cgroup/memory.current") >> used)
        available = std::min(available, std::max<int64_t>(0, limit - used));
    return available;
}

bool CpuBackend::supports(DType compute_type) const {
    return compute_type == DType::float32 || (compute_type == DType::bfloat16 && built_for_bfloat16);
}

// More cost cache, fewer cost efficiency of the matmuls: 128 rows 12% of a step.
int64_t CpuBackend::preferred_logit_rows(int64_t rows, int64_t, DType) const {
    return std::min<int64_t>(rows, 512);
}

void* CpuBackend::allocate(int64_t bytes) {
    // Large arenas in large pages: otherwise address translation costs several percent of a step, more or
    // less by the luck of the allocation.
    constexpr int64_t page = 4096, large_page = 2 << 20;
    const int64_t alignment = bytes >= large_page ? large_page : page;
    const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, static_cast<size_t>(rounded));
#if defined(MADV_HUGEPAGE)
    if (memory != nullptr && alignment == large_page)
        madvise(memory, static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
    if (memory == nullptr)
        throw std::runtime_error("out of memory: cannot allocate " + std::to_string(bytes) + " bytes (" +
                                 std::to_string(available_memory()) +
                                 " available); use a smaller model or batch");
    fill_zero(memory, rounded);
    return memory;
}

void CpuBackend::release(void* memory) {
    std::free(memory);
}

WorkerPool& CpuBackend::workers() {
    if (workers_ == nullptr) workers_ = std::make_unique<WorkerPool>(threads_);
    return *workers_;
}

float* CpuBackend::thread_scratch(int64_t count) {
    return thread_scratch_[omp_get_thread_num()].at_least(count);
}

void CpuBackend::copy_to_device(void* device, const void* host, int64_t bytes) {
    if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}

void CpuBackend::copy_to_host(void* host, const void* device, int64_t bytes) {
    if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
}

void CpuBackend::fill_zero(void* device, int64_t bytes) {
    // In parallel, so that on machines with several memory nodes the pages spread over them.
    constexpr int64_t block = 4 << 20;
    parallel_for(bytes, block, [&](int64_t first, int64_t last) {
        std::memset(static_cast<char*>(device) + first, 0, static_cast<size_t>(last - first));
    });
}

}  // namespace train_qat
