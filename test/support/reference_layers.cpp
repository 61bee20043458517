// Oracles of the layers between the matmuls: biases, normalization, attention, feed-forward, loss.
#include <algorithm>
#include <cmath>

#include "test/support/reference.h"

namespace train_qat::reference {

static double at_or(const Array& values, int64_t index, double otherwise) {
    return values.empty() ? otherwise : values[index];
}

// ---- biases

Result bias_forward(const Array& z, const Array& column_scale, const Array& bias, int64_t M, int64_t N) {
    Result result(M * N);
    for (int64_t i = 0; i < M * N; ++i) {
        result.add(i, z[i] * at_or(column_scale, i % N, 1));
        result.add(i, bias[i % N]);
    }
    return result;
}

BiasBackward bias_backward(const Array& dbias, const Array& dz, const Array& column_scale, int64_t M,
                           int64_t N) {
    BiasBackward result{Result(M * N), Result(N)};
    for (int64_t n = 0; n < N; ++n) result.dbias.add(n, at_or(dbias, n, 0));
    for (int64_t i = 0; i < M * N; ++i) {
        result.dbias.add(i % N, dz[i]);
        result.dz.add(i, dz[i] * at_or(column_scale, i % N, 1));
    }
    return result;
}

// ---- normalization

RMSNormForward rmsnorm_forward(const Array& residual_in, const Array& branch, const Array& weight,
                               double epsilon, int64_t M, int64_t C) {
    RMSNormForward result{residual_in, Array(M), Result(M * C)};
    for (int64_t m = 0; m < M; ++m) {
        double squares = 0;
        for (int64_t c = 0; c < C; ++c) {
            double& r = result.residual[m * C + c];
            r += at_or(branch, m * C + c, 0);
            squares += r * r;
        }
        result.rstd[m] = 1 / std::sqrt(squares / static_cast<double>(C) + epsilon);
        for (int64_t c = 0; c < C; ++c) {
            const int64_t i = m * C + c;
            result.y.value[i] = result.residual[i] * result.rstd[m] * weight[c];
            // The addition is in float32, so its error is relative to the operands, not to their sum.
            const double operands = std::abs(residual_in[i]) + std::abs(at_or(branch, i, 0));
            result.y.magnitude[i] = operands * result.rstd[m] * std::abs(weight[c]);
        }
    }
    return result;
}

RMSNormBackward rmsnorm_backward(const Array& d_residual, const Array& dweight, const Array& dy,
                                 const Array& residual, const Array& rstd, const Array& weight,
                                 const Array& column_scale, int64_t M, int64_t C) {
    RMSNormBackward result{Result(M * C), Result(C), Result(M * C)};
    for (int64_t c = 0; c < C; ++c) result.dweight.add(c, at_or(dweight, c, 0));
    for (int64_t m = 0; m < M; ++m) {
        double mean = 0, mean_magnitude = 0;
        for (int64_t c = 0; c < C; ++c) {
            const double product = dy[m * C + c] * weight[c] * residual[m * C + c] * rstd[m];
            mean += product / static_cast<double>(C);
            mean_magnitude += std::abs(product) / static_cast<double>(C);
        }
        for (int64_t c = 0; c < C; ++c) {
            const int64_t i = m * C + c;
            const double n = residual[i] * rstd[m];
            result.dweight.add(c, dy[i] * n);
            result.d_residual.add(i, at_or(d_residual, i, 0));
            result.d_residual.add(i, rstd[m] * dy[i] * weight[c]);
            result.d_residual.add(i, -rstd[m] * n * mean);
            result.d_residual.magnitude[i] += rstd[m] * std::abs(n) * (mean_magnitude - std::abs(mean));
            result.dz.value[i] = at_or(column_scale, c, 1) * result.d_residual.value[i];
            result.dz.magnitude[i] = std::abs(at_or(column_scale, c, 1)) * result.d_residual.magnitude[i];
        }
    }
    return result;
}

// ---- attention

namespace {

// The columns of head h, of all rows; and back.
Array columns_of_head(const Array& rows, int64_t h, const Shape& shape) {
    Array result;
    for (int64_t m = 0; m < shape.rows(); ++m)
        for (int64_t i = 0; i < shape.head_dim; ++i)
            result.push_back(rows[m * shape.qkv_columns() + h * shape.head_dim + i]);
    return result;
}

void put_head(Result& rows, const Result& head, int64_t h, const Shape& shape) {
    const int64_t D = shape.head_dim;
    for (int64_t i = 0; i < shape.rows() * D; ++i) {
        const int64_t place = i / D * shape.qkv_columns() + h * D + i % D;
        rows.value[place] = head.value[i];
        rows.magnitude[place] = head.magnitude[i];
    }
}

Array scales_of_head(const Array& column_scale, int64_t h, int64_t D) {
    if (column_scale.empty()) return {};
    return Array(column_scale.begin() + h * D, column_scale.begin() + (h + 1) * D);
}

}  // namespace

HeadNormForward head_norm_forward(const Array& x, const Array& column_scale, const Array& query_weight,
                                  const Array& key_weight, double epsilon, const Shape& shape) {
    const int64_t M = shape.rows(), D = shape.head_dim, normed = shape.heads + shape.kv_heads;
    HeadNormForward result{Result(M * shape.qkv_columns()), Array(M * normed)};
    for (int64_t h = 0; h < normed + shape.kv_heads; ++h) {
        const Array scaled = scale_columns(columns_of_head(x, h, shape), scales_of_head(column_scale, h, D));
        Result y(M * D);
        if (h < normed) {
            const Array& weight = h < shape.heads ? query_weight : key_weight;
            const RMSNormForward head = rmsnorm_forward(scaled, {}, weight, epsilon, M, D);
            y = head.y;
            for (int64_t m = 0; m < M; ++m) result.rstd[m * normed + h] = head.rstd[m];
        } else {
            for (int64_t i = 0; i < M * D; ++i) y.add(i, scaled[i]);
        }
        put_head(result.y, y, h, shape);
    }
    return result;
}

HeadNormBackward head_norm_backward(const Array& dquery_weight, const Array& dkey_weight, const Array& dy,
                                    const Array& x, const Array& rstd, const Array& column_scale,
                                    const Array& query_weight, const Array& key_weight, const Shape& shape) {
    const int64_t M = shape.rows(), D = shape.head_dim, normed = shape.heads + shape.kv_heads;
    HeadNormBackward result{Result(M * shape.qkv_columns()), Result(D), Result(D)};
    for (int64_t i = 0; i < D; ++i) {
        result.dquery_weight.add(i, at_or(dquery_weight, i, 0));
        result.dkey_weight.add(i, at_or(dkey_weight, i, 0));
    }
    for (int64_t h = 0; h < normed + shape.kv_heads; ++h) {
        const Array scale = scales_of_head(column_scale, h, D), head_dy = columns_of_head(dy, h, shape);
        Result dx(M * D);
        if (h < normed) {
            Array head_rstd(M);
            for (int64_t m = 0; m < M; ++m) head_rstd[m] = rstd[m * normed + h];
            const RMSNormBackward head =
                rmsnorm_backward({}, {}, head_dy, scale_columns(columns_of_head(x, h, shape), scale),
                                 head_rstd, h < shape.heads ? query_weight : key_weight, scale, M, D);
            dx = head.dz;
            Result& dweight = h < shape.heads ? result.dquery_weight : result.dkey_weight;
            for (int64_t i = 0; i < D; ++i) {
                dweight.value[i] += head.dweight.value[i];
                dweight.magnitude[i] += head.dweight.magnitude[i];
            }
        } else {
            for (int64_t i = 0; i < M * D; ++i) dx.add(i, head_dy[i] * at_or(scale, i % D, 1));
        }
        put_head(result.dx, dx, h, shape);
    }
    return result;
}

RopeTables rope_tables(int64_t T, int64_t head_dim, double theta) {
    RopeTables tables;
    for (int64_t t = 0; t < T; ++t) {
        for (int64_t i = 0; i < head_dim / 2; ++i) {
            const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
            const double angle = static_cast<double>(t) * std::pow(theta, exponent);
            tables.cosines.push_back(std::cos(angle));
            tables.sines.push_back(std::sin(angle));
        }
    }
    return tables;
}

// Turns the query and key columns by `direction` times the angle: (a, b) -> (a cos - b sin, a sin + b cos).
static Result rotate(const Array& qkv, const RopeTables& tables, const Shape& shape, double direction) {
    const int64_t columns = shape.qkv_columns(), D = shape.head_dim, half = D / 2;
    Result result(static_cast<int64_t>(qkv.size()));
    for (int64_t row = 0; row < shape.rows(); ++row) {
        const int64_t t = row % shape.sequence;
        for (int64_t column = 0; column < columns; ++column) {
            const int64_t head = column / D, i = column % D, here = row * columns + column;
            if (head >= shape.heads + shape.kv_heads) {
                result.add(here, qkv[here]);
                continue;
            }
            const double cosine = tables.cosines[t * half + i % half];
            const double sine = direction * tables.sines[t * half + i % half];
            result.add(here, qkv[here] * cosine);
            if (i < half) {
                result.add(here, -qkv[here + half] * sine);
            } else {
                result.add(here, qkv[here - half] * sine);
            }
        }
    }
    return result;
}

Result rope_forward(const Array& qkv, const RopeTables& tables, const Shape& shape) {
    return rotate(qkv, tables, shape, +1);
}

Result rope_backward(const Array& dqkv, const RopeTables& tables, const Array& column_scale,
                     const Shape& shape) {
    Result result = rotate(dqkv, tables, shape, -1);
    for (size_t i = 0; i < result.value.size(); ++i) {
        const double s = at_or(column_scale, static_cast<int64_t>(i) % shape.qkv_columns(), 1);
        result.value[i] *= s;
        result.magnitude[i] *= std::abs(s);
    }
    return result;
}

namespace {

// Where the vectors of query head h and of its key/value head start in a row of qkv.
struct HeadColumns {
    int64_t query, key, value;
    HeadColumns(const Shape& shape, int64_t h)
        : query(h * shape.head_dim),
          key((shape.heads + h / (shape.heads / shape.kv_heads)) * shape.head_dim),
          value(key + shape.kv_heads * shape.head_dim) {}
};

double dot_of(const double* a, const double* b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

double absolute_dot_of(const double* a, const double* b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::abs(a[i] * b[i]);
    return sum;
}

}  // namespace

AttentionForward attention_forward(const Array& qkv, const Shape& shape) {
    const int64_t T = shape.sequence, D = shape.head_dim, columns = shape.qkv_columns();
    AttentionForward result{Result(shape.rows() * shape.y_columns()), Array(shape.rows() * shape.heads),
                            Array(shape.rows() * shape.heads)};
    const double root = std::sqrt(static_cast<double>(D));
    Array scores(T);
    for (int64_t b = 0; b < shape.batch; ++b) {
        for (int64_t h = 0; h < shape.heads; ++h) {
            const HeadColumns head(shape, h);
            for (int64_t t = 0; t < T; ++t) {
                const double* q = &qkv[(b * T + t) * columns + head.query];
                double maximum = -HUGE_VAL, magnitude = 0, sum = 0;
                for (int64_t u = 0; u <= t; ++u) {
                    const double* k = &qkv[(b * T + u) * columns + head.key];
                    scores[u] = dot_of(q, k, D) / root;
                    maximum = std::max(maximum, scores[u]);
                    magnitude = std::max(magnitude, absolute_dot_of(q, k, D) / root);
                }
                for (int64_t u = 0; u <= t; ++u) sum += std::exp(scores[u] - maximum);
                const int64_t statistic = (b * shape.heads + h) * T + t;
                result.log_sum_exp[statistic] = maximum + std::log(sum);
                result.log_sum_exp_magnitude[statistic] = magnitude + 1;
                for (int64_t u = 0; u <= t; ++u) {
                    const double p = std::exp(scores[u] - maximum) / sum;
                    const double* v = &qkv[(b * T + u) * columns + head.value];
                    const int64_t y = (b * T + t) * shape.y_columns() + h * D;
                    for (int64_t i = 0; i < D; ++i) result.y.add(y + i, p * v[i]);
                }
            }
        }
    }
    return result;
}

Result attention_backward(const Array& dy, const Array& qkv, const Array& y, const Array& log_sum_exp,
                          const Shape& shape) {
    const int64_t T = shape.sequence, D = shape.head_dim, columns = shape.qkv_columns();
    Result result(static_cast<int64_t>(qkv.size()));
    const double root = std::sqrt(static_cast<double>(D));
    for (int64_t b = 0; b < shape.batch; ++b) {
        for (int64_t h = 0; h < shape.heads; ++h) {
            const HeadColumns head(shape, h);
            for (int64_t t = 0; t < T; ++t) {
                const int64_t y_row = (b * T + t) * shape.y_columns() + h * D;
                const int64_t q = (b * T + t) * columns + head.query;
                const double delta = dot_of(&dy[y_row], &y[y_row], D);
                const double delta_magnitude = absolute_dot_of(&dy[y_row], &y[y_row], D);
                for (int64_t u = 0; u <= t; ++u) {
                    const int64_t k = (b * T + u) * columns + head.key;
                    const int64_t v = (b * T + u) * columns + head.value;
                    const double score = dot_of(&qkv[q], &qkv[k], D) / root;
                    const double p = std::exp(score - log_sum_exp[(b * shape.heads + h) * T + t]);
                    const double dp = dot_of(&dy[y_row], &qkv[v], D);
                    const double ds = p * (dp - delta) / root;
                    const double ds_magnitude =
                        p * (absolute_dot_of(&dy[y_row], &qkv[v], D) + delta_magnitude) / root;
                    for (int64_t i = 0; i < D; ++i) {
                        result.add(v + i, p * dy[y_row + i]);
                        result.value[q + i] += ds * qkv[k + i];
                        result.value[k + i] += ds * qkv[q + i];
                        result.magnitude[q + i] += ds_magnitude * std::abs(qkv[k + i]);
                        result.magnitude[k + i] += ds_magnitude * std::abs(qkv[q + i]);
                    }
                }
            }
        }
    }
    return result;
}

// ---- feed-forward

static double sigmoid(double x) {
    return 1 / (1 + std::exp(-x));
}

Result swiglu_forward(const Array& gate_up, int64_t M, int64_t F) {
    Result y(M * F);
    for (int64_t m = 0; m < M; ++m) {
        for (int64_t f = 0; f < F; ++f) {
            const double gate = gate_up[m * 2 * F + f], up = gate_up[m * 2 * F + F + f];
            y.add(m * F + f, gate * sigmoid(gate) * up);
        }
    }
    return y;
}

Result swiglu_backward(const Array& dy, const Array& gate_up, const Array& column_scale, int64_t M,
                       int64_t F) {
    Result result(M * 2 * F);
    for (int64_t m = 0; m < M; ++m) {
        for (int64_t f = 0; f < F; ++f) {
            const int64_t i = m * 2 * F + f;
            const double gate = gate_up[i], up = gate_up[i + F], g = dy[m * F + f], s = sigmoid(gate);
            // silu'(x) = sigmoid(x) + x sigmoid(x) (1 - sigmoid(x))
            result.add(i, at_or(column_scale, f, 1) * g * up * s);
            result.add(i, at_or(column_scale, f, 1) * g * up * s * gate * sigmoid(-gate));
            result.add(i + F, at_or(column_scale, F + f, 1) * g * gate * s);
        }
    }
    return result;
}

// ---- loss

CrossEntropy cross_entropy(const Array& logits, const Array& targets, const Array& column_scale,
                           double gradient_factor, int64_t M, int64_t V) {
    CrossEntropy result{Result(M), Result(M * V)};
    for (int64_t m = 0; m < M; ++m) {
        const double* row = &logits[m * V];
        const auto target = static_cast<int64_t>(targets[m]);
        const double maximum = *std::max_element(row, row + V);
        double sum = 0;
        for (int64_t v = 0; v < V; ++v) sum += std::exp(row[v] - maximum);
        result.losses.value[m] = std::log(sum) + (maximum - row[target]);
        result.losses.magnitude[m] = std::abs(maximum) + std::abs(row[target]) + std::log(sum) + 1;
        for (int64_t v = 0; v < V; ++v) {
            const double factor = at_or(column_scale, v, 1) * gradient_factor;
            result.d_logits.add(m * V + v, factor * std::exp(row[v] - maximum) / sum);
            if (v == target) result.d_logits.add(m * V + v, -factor);
        }
    }
    return result;
}

}  // namespace train_qat::reference
