// The frame of the kernel benchmarks: each program holds numbered variants of one operation, from the obvious one to the
// one that trains. Every variant is compared with double precision (test/support/reference.h), timed, and measured by
// what the card could do.
//
//   bench_cuda_matmul                 checks small shapes, then times all variants, checking some rows
//   bench_cuda_matmul --variant 3     one of them
//   bench_cuda_matmul --rows 4096     another size than the default
//   emulated_bench_matmul --check     only the small shapes, without a GPU
//
// Exit status 1 when a variant is wrong, 2 when it cannot run.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/device_memory.h"
#include "test/support/reference.h"

namespace train_qat::CU_BACKEND {

using reference::Array;

// ---- what a program says about itself

// A size of the operation: its name on the command line, its value for timing, and one value for each shape
// of the check.
struct Size {
    const char* name;
    int64_t timed;
    std::vector<int64_t> checked;
};
using Sizes = std::map<std::string, int64_t>;

// How far results are from the truth. Each number may be off by half a unit in the last place of its type,
// the rounding at the end, and by a tolerance: `slack` times its magnitude (reference::Result). share: of the
// tolerance.
struct Comparison {
    double error = 0, share = 0;
    void add(const Array& actual, const reference::Result& expected, DType dtype, double slack);
    void add(double actual, double expected, double magnitude, DType dtype, double slack);
    // Where only equality is right.
    void add_exact(double actual, double expected) { add(actual, expected, 0, DType::float32, 0); }
    bool passed() const { return share <= 1; }
};

// One way to compute an operation. run: enqueues it once.
struct Variant {
    std::string name;
    std::function<void()> run;
};

// Variants that compute the same thing.
struct Operation {
    std::string name;
    double bytes = 0;             // that must cross memory: every input once, every output once
    double flops = 0;             // of matmuls
    std::function<void()> reset;  // before a run that is compared; may be empty
    std::function<Comparison()> compare;
    std::vector<Variant> variants;
};

// ---- the data of one shape

// A tensor of random numbers. A large one repeats a pattern, of which the host keeps one period.
class Numbers {
  public:
    Numbers() = default;
    Numbers(const Tensor& tensor, Array pattern) : tensor_(tensor), pattern_(std::move(pattern)) {}
    const Tensor& tensor() const { return tensor_; }
    const Array& pattern() const { return pattern_; }
    double operator[](int64_t element) const { return pattern_[element % std::ssize(pattern_)]; }
    // `count` rows (of the leading dimension) from `first` on.
    Array rows(int64_t first, int64_t count) const;
    Array all() const { return rows(0, tensor_.shape[0]); }

  private:
    Tensor tensor_;
    Array pattern_;
};

// Memory and inputs of the operations of one shape.
class Problem {
  public:
    explicit Problem(CudaBackend& backend) : backend_(backend) {}
    virtual ~Problem() = default;
    virtual std::vector<Operation> operations() = 0;

  protected:
    using Shape = std::initializer_list<int64_t>;

    CudaBackend& backend() { return backend_; }
    CuStream stream() { return backend_.device().stream(); }
    void* memory(int64_t bytes);

    Numbers normals(DType dtype, Shape shape, double deviation = 1);
    // Evenly from 0.01 to 1 times `largest`, and exact in float16 as effective scales are.
    Numbers positives(DType dtype, Shape shape, double largest = 1);
    Numbers tokens(Shape shape, int64_t vocabulary);
    Tensor output(DType dtype, Shape shape);
    void upload(const Numbers& numbers);  // once more

    // NaN everywhere: what a variant leaves out shows.
    void poison(const Tensor& tensor);
    Array read(const Tensor& tensor);

    // All of `count` rows when they are few, else some, the first and the last among them.
    static std::vector<int64_t> sample(int64_t count);

  private:
    Numbers numbers(DType dtype, Shape shape, const std::function<double()>& draw);
    double uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }  // [0, 1)

    CudaBackend& backend_;
    std::vector<DeviceMemory> memory_;
    std::mt19937_64 random_{1};
};

struct Benchmark {
    const char* name;
    const char* description;
    std::vector<Size> sizes;
    std::function<std::unique_ptr<Problem>(CudaBackend&, const Sizes&)> make;
};

// The program: its exit status.
int run_benchmark(const Benchmark& benchmark, int argc, char** argv);

// Relative error of a float32 sum of `terms` terms, as a factor of the sum of their absolute values.
inline double float32_sum(int64_t terms) {
    return (4 + std::sqrt(static_cast<double>(terms))) * 0x1p-24;
}

}  // namespace train_qat::CU_BACKEND
