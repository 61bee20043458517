// Entry checks and lower bounds of cost of all operations, once for all backends.
#include "kernels/operations.h"

#include <stdexcept>
#include <string>

#include "kernels/checks.h"

namespace train_qat {

namespace {

constexpr DType float32 = DType::float32;

double elements(std::span<const ParameterRows> parameters) {
    double count = 0;
    for (const ParameterRows& p : parameters) count += static_cast<double>(p.elements());
    return count;
}

// Of a product of (rows, inner) and (inner, columns).
OperationCost product_cost(int64_t rows, int64_t inner, int64_t columns) {
    return {2.0 * static_cast<double>(rows) * static_cast<double>(inner) * static_cast<double>(columns), 0};
}

void check_result_type(const char* operation, const char* argument, const Tensor& result,
                       const Tensor& operand) {
    if (result.dtype != float32 && result.dtype != operand.dtype)
        throw std::logic_error(std::string(operation) + ": " + argument + " must be float32 or " +
                               name_of(operand.dtype) + ", is " + name_of(result.dtype));
}

// The second operation of two reads, or changes, what the first has written.
void check_joint(const char* operation, const Tensor& written, const Tensor& read) {
    if (written.data != read.data || written.dtype != read.dtype || written.shape[0] != read.shape[0] ||
        written.shape[1] != read.shape[1])
        throw std::logic_error(std::string(operation) + ": its second part must read what its first writes");
}

OperationCost sum_of_costs(const OperationCost& a, const OperationCost& b) {
    return {a.flops + b.flops, a.bytes + b.bytes};
}

}  // namespace

// ---- matmuls

void MatmulForward::check() const {
    const int64_t rows = x.shape[0];
    check_tensor(name, "x", x, weight.dtype, {rows, weight.columns});
    check_result_type(name, "z", z, x);
    check_tensor(name, "z", z, z.dtype, {rows, weight.rows});
}

OperationCost MatmulForward::cost() const {
    return product_cost(x.shape[0], weight.columns, weight.rows);
}

void MatmulInputGradient::check() const {
    const int64_t rows = dz.shape[0];
    check_tensor(name, "dz", dz, weight.dtype, {rows, weight.rows});
    check_tensor(name, "dx", dx, weight.dtype, {rows, weight.columns});
}

OperationCost MatmulInputGradient::cost() const {
    return product_cost(dz.shape[0], weight.rows, weight.columns);
}

void MatmulWeightGradient::check() const {
    const int64_t inner = dz.shape[0], rows = dz.shape[1], columns = x.shape[1];
    check_compute_type(name, "dz", dz);
    check_tensor(name, "dz", dz, dz.dtype, {inner, rows});
    check_tensor(name, "x", x, dz.dtype, {inner, columns});
    check_tensor(name, "dq", dq, float32, {rows, columns});
}

OperationCost MatmulWeightGradient::cost() const {
    return product_cost(dz.shape[1], dz.shape[0], x.shape[1]);
}

void BiasForward::check() const {
    const int64_t rows = z.shape[0], columns = z.shape[1];
    check_compute_type(name, "z", z);
    check_tensor(name, "z", z, z.dtype, {rows, columns});
    check_optional(name, "column_scale", column_scale, float32, {columns});
    check_tensor(name, "bias", bias, float32, {columns});
}

OperationCost BiasForward::cost() const {
    return {0, 2 * sum_of_bytes({z})};
}

void BiasBackward::check() const {
    const int64_t rows = dz.shape[0], columns = dz.shape[1];
    check_compute_type(name, "dz", dz);
    check_tensor(name, "dz", dz, dz.dtype, {rows, columns});
    check_tensor(name, "dbias", dbias, float32, {columns});
    check_optional(name, "column_scale", column_scale, float32, {columns});
}

OperationCost BiasBackward::cost() const {
    return {0, (column_scale.empty() ? 1 : 2) * sum_of_bytes({dz})};
}

// ---- embedding

void EmbeddingForward::check() const {
    const int64_t rows = tokens.shape[0];
    check_tensor(name, "tokens", tokens, DType::int32, {rows});
    check_tensor(name, "y", y, float32, {rows, weight.columns});
    if (!weight.embedding)
        throw std::logic_error(std::string(name) + ": the weight was not made for look-ups");
}

OperationCost EmbeddingForward::cost() const {
    const double row_bytes = static_cast<double>(weight.columns * size_of(weight.dtype));
    return {0, sum_of_bytes({y}) + static_cast<double>(tokens.elements()) * row_bytes};
}

void EmbeddingBackward::check() const {
    const int64_t rows = tokens.shape[0], vocabulary = dq.shape[0], columns = dq.shape[1];
    check_tensor(name, "tokens", tokens, DType::int32, {rows});
    check_tensor(name, "dq", dq, float32, {vocabulary, columns});
    check_tensor(name, "dy", dy, float32, {rows, columns});
    check_optional(name, "row_scale", row_scale, float32, {vocabulary});
}

// dy is read; the rows of dq are read and written.
OperationCost EmbeddingBackward::cost() const {
    return {0, 3 * sum_of_bytes({dy})};
}

// ---- normalization

void ResidualRmsnormForward::check() const {
    const int64_t rows = y.shape[0], columns = y.shape[1];
    check_compute_type(name, "y", y);
    check_tensor(name, "y", y, y.dtype, {rows, columns});
    check_tensor(name, "residual_in", residual_in, float32, {rows, columns});
    check_tensor(name, "rstd", rstd, float32, {rows});
    check_tensor(name, "weight", weight, float32, {columns});
    check_optional(name, "branch", branch, y.dtype, {rows, columns});
    check_optional(name, "column_scale", column_scale, float32, {columns});
    if (branch.empty() != residual_out.empty())
        throw std::logic_error(std::string(name) + ": branch and residual_out come together");
    check_optional(name, "residual_out", residual_out, float32, {rows, columns});
}

OperationCost ResidualRmsnormForward::cost() const {
    return {0, sum_of_bytes({residual_out, y, residual_in, branch})};
}

void RmsnormBackward::check() const {
    const int64_t rows = dy.shape[0], columns = dy.shape[1];
    check_compute_type(name, "dy", dy);
    check_tensor(name, "dy", dy, dy.dtype, {rows, columns});
    check_tensor(name, "d_residual", d_residual, float32, {rows, columns});
    check_tensor(name, "residual", residual, float32, {rows, columns});
    check_tensor(name, "rstd", rstd, float32, {rows});
    check_tensor(name, "weight", weight, float32, {columns});
    check_tensor(name, "dweight", dweight, float32, {columns});
    check_optional(name, "dz", dz, dy.dtype, {rows, columns});
    check_optional(name, "column_scale", column_scale, float32, {columns});
}

OperationCost RmsnormBackward::cost() const {
    return {0, sum_of_bytes({d_residual, dz, dy, residual}) +
                   (accumulate_residual ? sum_of_bytes({d_residual}) : 0)};
}

// ---- feed-forward

void SwigluForward::check() const {
    const int64_t rows = y.shape[0], columns = y.shape[1];
    check_compute_type(name, "y", y);
    check_tensor(name, "y", y, y.dtype, {rows, columns});
    check_tensor(name, "gate_up", gate_up, y.dtype, {rows, 2 * columns});
    check_optional(name, "column_scale", column_scale, float32, {2 * columns});
}

OperationCost SwigluForward::cost() const {
    return {0, sum_of_bytes({y, gate_up})};
}

void MatmulRopeForward::check() const {
    matmul.check();
    rope.check();
    check_joint(name, matmul.z, rope.qkv);
}

OperationCost MatmulRopeForward::cost() const {
    return sum_of_costs(matmul.cost(), rope.cost());
}

void MatmulSwigluForward::check() const {
    matmul.check();
    swiglu.check();
    check_joint(name, matmul.z, swiglu.gate_up);
}

OperationCost MatmulSwigluForward::cost() const {
    return sum_of_costs(matmul.cost(), swiglu.cost());
}

void SwigluBackward::check() const {
    const int64_t rows = dy.shape[0], columns = dy.shape[1];
    check_compute_type(name, "dy", dy);
    check_tensor(name, "dy", dy, dy.dtype, {rows, columns});
    check_tensor(name, "gate_up", gate_up, dy.dtype, {rows, 2 * columns});
    check_tensor(name, "d_gate_up", d_gate_up, dy.dtype, {rows, 2 * columns});
    check_optional(name, "column_scale", column_scale, float32, {2 * columns});
}

OperationCost SwigluBackward::cost() const {
    return {0, sum_of_bytes({d_gate_up, dy, gate_up})};
}

// ---- loss

void CrossEntropy::check() const {
    const int64_t rows = logits.shape[0], vocabulary = logits.shape[1];
    check_compute_type(name, "logits", logits);
    check_tensor(name, "logits", logits, logits.dtype, {rows, vocabulary});
    check_tensor(name, "losses", losses, float32, {rows});
    check_tensor(name, "targets", targets, DType::int32, {rows});
    check_compute_type(name, "d_logits", d_logits);
    check_optional(name, "d_logits", d_logits, d_logits.dtype, {rows, vocabulary});
    if (!d_logits.empty()) check_result_type(name, "logits", logits, d_logits);
    if (d_logits.data == logits.data && d_logits.dtype != logits.dtype)
        throw std::logic_error(std::string(name) +
                               ": d_logits may take the place of logits of its type alone");
    check_optional(name, "column_scale", column_scale, float32, {vocabulary});
}

OperationCost CrossEntropy::cost() const {
    return {0, sum_of_bytes({d_logits, logits})};
}

void Sum::check() const {
    check_tensor(name, "total", total, float32, {1});
    check_tensor(name, "values", values, float32, {values.shape[0]});
}

OperationCost Sum::cost() const {
    return {0, sum_of_bytes({values})};
}

// ---- weights, once per optimizer step

void InitializeScales::check() const {
    for (const ParameterRows& parameter : parameters)
        if (parameter.grid != Grid::none) check_parameter(name, parameter);
}

OperationCost InitializeScales::cost() const {
    return {0, 4 * elements(parameters)};
}

void Quantize::check() const {
    for (const ParameterRows& parameter : parameters) check_parameter(name, parameter);
}

// A float32 weight read, two copies of two bytes written.
OperationCost Quantize::cost() const {
    return {0, 8 * elements(parameters)};
}

void SteBackwardAndNorm::check() const {
    check_tensor(name, "squares", squares, float32, {static_cast<int64_t>(parameters.size())});
    for (const ParameterRows& parameter : parameters) check_gradients(name, parameter);
}

// The gradient read; with a grid also the weight read and the gradient written.
OperationCost SteBackwardAndNorm::cost() const {
    double bytes = 0;
    for (const ParameterRows& p : parameters)
        bytes += (p.grid == Grid::none ? 4.0 : 12.0) * static_cast<double>(p.elements());
    return {0, bytes};
}

void AdamwAndQuantize::check() const {
    check_tensor(name, "squares", squares, float32, {squares.shape[0]});
    if (step.step < 1 || step.scale_step < 1)
        throw std::logic_error(std::string(name) + ": steps are counted from 1");
    for (const ParameterRows& parameter : parameters) check_moments(name, parameter);
}

// Four float32 arrays read and three written, two copies of two bytes written.
OperationCost AdamwAndQuantize::cost() const {
    return {0, 32 * elements(parameters)};
}

// ---- weights among ranks

namespace {

void check_message_for_each(const char* name, size_t parameters, size_t messages) {
    if (parameters != messages)
        throw std::logic_error(std::string(name) + ": needs a message for each parameter");
}

}  // namespace

void WriteWeightMessages::check() const {
    check_message_for_each(name, rows.size(), messages.size());
    for (const ParameterRows& p : rows) {
        check_parameter(name, p);
        check_compute_rows(name, p);
    }
}

OperationCost WriteWeightMessages::cost() const {
    return {0, 4 * elements(rows)};
}

void ReadWeightMessages::check() const {
    check_message_for_each(name, parameters.size(), messages.size());
    for (const ParameterRows& p : parameters) check_compute_rows(name, p);
}

// Two copies of two bytes written.
OperationCost ReadWeightMessages::cost() const {
    return {0, 4 * elements(parameters)};
}

}  // namespace train_qat
