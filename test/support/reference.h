// Slow, obvious double-precision versions of all operations of kernels/operations.h: the oracles of the tests.
// They take the very values that the device gets (already rounded to its dtypes) and share no code with
// kernels/.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/grid.h"
#include "kernels/tensor.h"

namespace train_qat::reference {

using Array = std::vector<double>;

// What a correct implementation returns. `magnitude` is, element by element, the sum of the absolute values
// of the terms that `value` is the sum of: a float32 implementation is allowed an error of a few 2^-24 of it.
struct Result {
    Array value;
    Array magnitude;
    explicit Result(int64_t elements = 0) : value(elements, 0.0), magnitude(elements, 0.0) {}
    void add(int64_t index, double term) {
        value[index] += term;
        magnitude[index] += term < 0 ? -term : term;
    }
};

// values (rows, columns) with each column times its scale; the values themselves where there are no scales.
Array scale_columns(Array values, const Array& column_scale);

// ---- number formats

// Nearest value (ties to even) with `fraction_bits` stored bits, no exponent below `least_exponent`,
// unbounded above.
double round_to_format(double value, int fraction_bits, int least_exponent);
double round_to_bfloat16(double value);
double round_to_float16(double value);  // saturates at 65504
double round_to(DType dtype, double value);
Array rounded(DType dtype, Array values);
// Distance of neighbouring values of `dtype` around `value`.
double unit_in_last_place(DType dtype, double value);

// ---- quantization grids (the table of kernels/grid.h, written down a second time)

struct GridTable {
    Array levels;
    double clip_low, clip_high;  // of r = w/s
    double shift;                // levels are integers + shift
    double positive_levels;
    bool mean_absolute;
    double divisor;
};
const std::vector<Grid>& quantized_grids();  // all but none
const char* name_of(Grid grid);
GridTable table_of(Grid grid);
// r = w / s in float32: the ratio that the grids are defined on.
float ratio(double weight, double effective_scale);
double effective_scale(double scale);  // at least smallest_scale, rounded to float16
double level(Grid grid, float r);
bool inside(Grid grid, float r);
double scale_gradient(Grid grid, float r);

// A parameter's weights as matmuls use them: w = row_scale * q, or q alone when row_scale is empty.
struct QuantizedMatrix {
    Array q;          // (rows, columns), values of the compute type
    Array row_scale;  // (rows) or empty
    double at(int64_t row, int64_t column, int64_t columns) const {
        return q[row * columns + column] * (row_scale.empty() ? 1.0 : row_scale[row]);
    }
};
QuantizedMatrix quantize(Grid grid, int64_t rows, int64_t columns, int64_t group, const Array& master,
                         const Array& scale, DType compute_type);
Array initial_scales(Grid grid, int64_t rows, int64_t columns, int64_t group, const Array& master);

struct StraightThrough {
    Array gradient;
    Result scale_gradient;
    double squares = 0;
};
StraightThrough straight_through_backward(Grid grid, int64_t rows, int64_t columns, int64_t group,
                                          double factor, const Array& master, const Array& scale,
                                          const Array& dq);

// ---- optimizer

struct AdamWState {
    Array value, first_moment, second_moment;
};
struct AdamWArguments {
    double learning_rate, beta1, beta2, epsilon, weight_decay, clip_factor;
    int64_t step;
    bool relative = false;  // the step is a fraction of the value
};
void adamw(AdamWState& state, const Array& gradient, const AdamWArguments& arguments);

// ---- matmuls and embedding

// y[m,n] = sum_k x[m,k] q[n,k]; row_scale has no part in it.
Result matmul_forward(const Array& x, const QuantizedMatrix& weight, int64_t M, int64_t N, int64_t K);
// dx[m,k] = sum_n dz[m,n] q[n,k]
Result matmul_input_gradient(const Array& dz, const Array& q, int64_t M, int64_t N, int64_t K);
// dq[n,k] = initial[n,k] + sum_m dz[m,n] x[m,k]; `initial` may be empty.
Result matmul_weight_gradient(const Array& dz, const Array& x, const Array& initial, int64_t M, int64_t N,
                              int64_t K);

Result embedding_backward(const Array& dq, const Array& dy, const Array& tokens, const Array& row_scale,
                          int64_t C);

// ---- biases

Result bias_forward(const Array& z, const Array& column_scale, const Array& bias, int64_t M, int64_t N);
struct BiasBackward {
    Result dz, dbias;
};
// dbias: what is accumulated onto, or empty.
BiasBackward bias_backward(const Array& dbias, const Array& dz, const Array& column_scale, int64_t M,
                           int64_t N);

// ---- normalization

struct RMSNormForward {
    Array residual, rstd;
    Result y;
};
// branch may be empty.
RMSNormForward rmsnorm_forward(const Array& residual_in, const Array& branch, const Array& weight,
                               double epsilon, int64_t M, int64_t C);
struct RMSNormBackward {
    Result d_residual, dweight, dz;
};
// d_residual and dweight: what is accumulated onto, or empty; column_scale may be empty.
RMSNormBackward rmsnorm_backward(const Array& d_residual, const Array& dweight, const Array& dy,
                                 const Array& residual, const Array& rstd, const Array& weight,
                                 const Array& column_scale, int64_t M, int64_t C);

// ---- attention

struct Shape {
    int64_t batch, sequence, heads, kv_heads, head_dim;
    int64_t rows() const { return batch * sequence; }
    int64_t qkv_columns() const { return (heads + 2 * kv_heads) * head_dim; }
    int64_t y_columns() const { return heads * head_dim; }
};
struct HeadNormForward {
    Result y;
    Array rstd;  // (M, H + G)
};
HeadNormForward head_norm_forward(const Array& x, const Array& column_scale, const Array& query_weight,
                                  const Array& key_weight, double epsilon, const Shape& shape);
struct HeadNormBackward {
    Result dx, dquery_weight, dkey_weight;
};
// dquery_weight and dkey_weight: what is accumulated onto, or empty.
HeadNormBackward head_norm_backward(const Array& dquery_weight, const Array& dkey_weight, const Array& dy,
                                    const Array& x, const Array& rstd, const Array& column_scale,
                                    const Array& query_weight, const Array& key_weight, const Shape& shape);

struct RopeTables {
    Array cosines, sines;  // (T, D/2)
};
RopeTables rope_tables(int64_t T, int64_t head_dim, double theta);
Result rope_forward(const Array& qkv, const RopeTables& tables, const Shape& shape);
Result rope_backward(const Array& dqkv, const RopeTables& tables, const Array& column_scale,
                     const Shape& shape);

struct AttentionForward {
    Result y;
    Array log_sum_exp;            // (B, H, T)
    Array log_sum_exp_magnitude;  // largest sum_d |q_d k_d| / sqrt(D) of the row, plus one
};
AttentionForward attention_forward(const Array& qkv, const Shape& shape);
Result attention_backward(const Array& dy, const Array& qkv, const Array& y, const Array& log_sum_exp,
                          const Shape& shape);

// ---- feed-forward and loss

Result swiglu_forward(const Array& gate_up, int64_t M, int64_t F);
Result swiglu_backward(const Array& dy, const Array& gate_up, const Array& column_scale, int64_t M,
                       int64_t F);

struct CrossEntropy {
    Result losses, d_logits;
};
CrossEntropy cross_entropy(const Array& logits, const Array& targets, const Array& column_scale,
                           double gradient_factor, int64_t M, int64_t V);

// ---- checks of the oracles themselves

// Central differences of `function` at `x`.
Array numerical_gradient(const std::function<double(const Array&)>& function, Array x, double step = 1e-5);
double dot(const Array& a, const Array& b);
// ||a - b|| / ||b||
double relative_distance(const Array& a, const Array& b);

}  // namespace train_qat::reference
