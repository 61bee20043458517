// Launches: CU_LAUNCH makes one, a stream runs it or records it.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// ---- CUDA's own names for where a thread is; global, as in CUDA

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the CUDA thread that runs on this thread of the CPU.
inline constinit thread_local uint3 threadIdx{}, blockIdx{};
inline constinit thread_local dim3 blockDim, gridDim;

namespace train_qat::emulator {

struct Launch {
    std::string kernel;
    std::source_location where;
    dim3 grid, block;
    int64_t shared_bytes = 0;
    std::function<void()> thread;            // the kernel with its arguments
    mutable char started = 0, finished = 0;  // tokens for the thread sanitizer

    int64_t blocks() const { return int64_t{grid.x} * grid.y * grid.z; }
    int64_t threads() const { return int64_t{block.x} * block.y * block.z; }
};

// Runs all blocks; LaunchError when one fails.
void run(const Launch& launch);

// Work in a stream happens at once, unless it is being recorded.
struct Stream {
    std::vector<std::function<void()>>* recording = nullptr;
    void enqueue(std::function<void()> work) {
        if (recording != nullptr)
            recording->push_back(std::move(work));
        else
            work();
    }
};

// The arguments are converted and copied now, as for a GPU.
template <typename... Parameters, typename... Arguments>
void launch(Stream* stream, Launch site, void (*kernel)(Parameters...), Arguments&&... arguments) {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
    static_assert((std::is_trivially_copyable_v<std::remove_cv_t<Parameters>> && ...),
                  "kernel parameters are passed as bytes");
    // The name of a template instance comes in parentheses.
    if (site.kernel.size() > 2 && site.kernel.front() == '(' && site.kernel.back() == ')')
        site.kernel = site.kernel.substr(1, site.kernel.size() - 2);
    site.thread = [kernel, values = std::tuple<std::remove_cv_t<Parameters>...>(
                               std::forward<Arguments>(arguments)...)] { std::apply(kernel, values); };
    if (stream == nullptr || stream->recording == nullptr)
        run(site);
    else
        stream->enqueue([site = std::move(site)] { run(site); });
}

}  // namespace train_qat::emulator
