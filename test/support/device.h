// The backends that the operation tests run on, and what a test needs around one call of an operation: memory
// with guards and poison, comparison with an oracle, and checks of the contract's error handling.
#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/device_memory.h"
#include "test/support/reference.h"

namespace train_qat::test {

using reference::Array;

// ---- backends

struct BackendUnderTest {
    std::string name;    // for messages
    std::string device;  // backends of one device must agree bit by bit
    Backend* backend;    // lives until the end of the process
    bool is_cpu() const { return device.starts_with("cpu"); }
};

// Every operation test runs on all of these: the one place to add a device. TRAIN_QAT_TEST_DEVICES names
// them, out of cpu, emulated (the CUDA kernels, on the CPU) and gpu; without it they are cpu,emulated.
const std::vector<BackendUnderTest>& backends_under_test();
// Those that support matmuls in `compute_type`.
std::vector<BackendUnderTest> backends_under_test(DType compute_type);
// float32, and bfloat16 where any backend supports it.
std::vector<DType> compute_types();

// The shapes to run: all, or with TRAIN_QAT_TEST_SMALL=1, for slow ways of running, those with cost(shape) <=
// limit.
bool small_shapes_only();
template <typename Shape, typename Cost>
std::vector<Shape> affordable(std::vector<Shape> shapes, int64_t limit, Cost&& cost) {
    if (small_shapes_only()) std::erase_if(shapes, [&](const Shape& shape) { return cost(shape) > limit; });
    return shapes;
}

// ---- random inputs

// The same numbers on every platform: the standard fixes the engine but not the distributions.
class Random {
  public:
    explicit Random(uint64_t seed) : engine_(seed) {}
    double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }  // [0, 1)
    double normal() {
        return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform());
    }
    int64_t integer(int64_t low, int64_t high) {  // both included
        return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
    }
    template <typename T>
    T pick(std::initializer_list<T> choices) {
        return choices.begin()[integer(0, static_cast<int64_t>(choices.size()) - 1)];
    }
    // Normal numbers times `deviation`, rounded to `dtype`.
    Array normals(int64_t count, DType dtype = DType::float32, double deviation = 1);
    // Positive numbers between 2^-2 and 2^2 times `scale`, float16-representable like the scales of a weight.
    Array scales(int64_t count, double scale = 1);
    Array tokens(int64_t count, int64_t vocabulary);

  private:
    std::mt19937_64 engine_;
};

// ---- one run of one operation

// All device memory of one run. Every tensor lies between two guards of at least 64 bytes. Guards, outputs
// and workspaces are filled with 0xff bytes, which are NaN in both float types: what is read by mistake shows
// in the results, what is written by mistake shows in damage().
class Bench {
  public:
    explicit Bench(Backend& backend) : backend_(backend) {}
    Backend& backend() { return backend_; }

    // Throws std::logic_error for a value that the dtype cannot hold: oracle and device get the same numbers.
    Tensor input(const std::string& name, const Array& values, DType dtype,
                 std::initializer_list<int64_t> shape);
    // Not empty only when `values` is not.
    Tensor optional_input(const std::string& name, const Array& values, DType dtype,
                          std::initializer_list<int64_t> shape);
    Tensor update(const std::string& name, const Array& values, DType dtype,
                  std::initializer_list<int64_t> shape);
    Tensor output(const std::string& name, DType dtype, std::initializer_list<int64_t> shape);
    void* workspace(int64_t bytes);

    // An unset ComputeWeight. scaled: see kernels/weights.h. Its storage is zero, as allocate() leaves it: a
    // backend may rely on that for the padding of its layout.
    ComputeWeight& compute_weight(int64_t rows, int64_t columns, DType dtype, bool embedding, bool scaled);

    Array read(const Tensor& tensor);
    // "" or which guards or inputs were overwritten.
    std::string damage();

  private:
    struct Block {
        std::string name;
        DeviceMemory memory;
        int64_t bytes = 0;
        bool constant = false;
        std::vector<unsigned char> content;
    };
    void* place(const std::string& name, const std::vector<unsigned char>& content, bool constant);

    Backend& backend_;
    std::deque<Block> blocks_;
    std::deque<ComputeWeight> weights_;
};

// ---- parameters

// The output of a linear layer as its reader sees it: matmul_forward's product (M, N) times the weight's
// row_scale.
Array linear_output(Bench& bench, const Tensor& product, const ComputeWeight& weight);

// A parameter on the host. Arrays that are empty stay null on the device.
struct HostParameter {
    int64_t rows = 0, columns = 0;
    Grid grid = Grid::none;
    int64_t group = 0;
    Array master, scale, gradient;
    bool one_scale_per_row() const { return grid != Grid::none && group == columns; }
    int64_t scales() const { return grid == Grid::none ? 0 : rows * columns / group; }
    reference::QuantizedMatrix quantized(DType compute_type) const {
        return reference::quantize(grid, rows, columns, group, master, scale, compute_type);
    }
};
// Normal weights with scales that use the whole grid and clip some weights; gradients are normal.
HostParameter random_parameter(Random& random, int64_t rows, int64_t columns, Grid grid, int64_t group);
// The parameter with zero moments and poisoned scale gradients. `compute` may be null.
ParameterRows place(Bench& bench, const HostParameter& host, ComputeWeight* compute, int64_t first_row = 0);
// A ComputeWeight that holds `host`, through Backend::quantize.
ComputeWeight& place_weight(Bench& bench, const HostParameter& host, DType compute_type,
                            bool embedding = false);
Tensor master_of(const ParameterRows& parameter);
Tensor gradient_of(const ParameterRows& parameter);
Tensor scale_of(const ParameterRows& parameter);
Tensor scale_gradient_of(const ParameterRows& parameter);
// The matrix that matmul_forward multiplies with: products of the rows of an identity, in float32.
Array revealed(Bench& bench, const ComputeWeight& weight);

// ---- comparison

// Relative error of a float32 sum of `terms` terms, as a factor of the sum of their absolute values. Rounding
// errors add up like a random walk, in practice to about half of 2^-24 of that sum.
inline double float32_sum(int64_t terms) {
    return (4 + std::sqrt(static_cast<double>(terms))) * 0x1p-24;
}

// "" or how `actual` differs from `expected`. Allowed per element: half a unit in the last place of `dtype`
// for the final rounding, and `slack` times the magnitude. Allowed for the tensor, unless its elements
// cancel: for float32 a distance of 1e-5 of the norm; for bfloat16 of 5e-3, and a cosine of 0.9999.
std::string difference(const Array& actual, const reference::Result& expected, DType dtype, double slack);
// "" or the first place where the arrays are not equal. -0 equals 0; NaN equals nothing.
std::string inequality(const Array& actual, const Array& expected);

// Remembers the first result of a device under each label and compares later ones with it bit by bit.
class SameBits {
  public:
    // "" or the first difference.
    std::string check(const BackendUnderTest& backend, const std::string& label, const Array& values);

  private:
    std::map<std::string, Array> seen_;
};

// ---- contract

// "" when `call` throws a std::logic_error whose message contains `operation`, else what happened instead.
std::string contract_violation(const std::string& operation, const std::function<void()>& call);

// Calls the operation with each tensor in turn missing, of a wrong dtype and with each extent shortened by
// one, and returns "" or which of these did not throw. `optional`: tensors that may be missing. `free_dtype`:
// floating-point tensors that alone decide about the compute type. All extents must be at least 2.
std::string contract_violations(const std::string& operation, const std::vector<Tensor>& tensors,
                                const std::set<int>& optional, const std::set<int>& free_dtype,
                                const std::function<void(const std::vector<Tensor>&)>& call);

Tensor with_dtype(Tensor tensor, DType dtype);
Tensor with_extent(Tensor tensor, int dimension, int64_t extent);

}  // namespace train_qat::test
