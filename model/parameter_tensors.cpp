#include "model/parameter_tensors.h"

namespace train_qat {

namespace {

Tensor weight_view(const Parameter& parameter, void* data, DType dtype = DType::float32) {
    const ParameterRows& rows = parameter.rows;
    return parameter.is_vector ? Tensor(data, dtype, {rows.columns})
                               : Tensor(data, dtype, {rows.rows, rows.columns});
}

Tensor master_view(const Parameter& parameter) {
    if (parameter.rows.narrow_master != nullptr)
        return weight_view(parameter, parameter.rows.narrow_master, DType::bfloat16);
    return weight_view(parameter, parameter.rows.master);
}

Tensor scale_view(const ParameterRows& rows, float* data) {
    return Tensor(data, DType::float32, {rows.rows, rows.columns / rows.group});
}

}  // namespace

std::vector<NamedTensor> model_tensors(const Parameters& parameters) {
    std::vector<NamedTensor> tensors;
    for (const Parameter& parameter : parameters.all()) {
        tensors.push_back({parameter.name, master_view(parameter)});
        if (parameter.rows.grid != Grid::none)
            tensors.push_back({parameter.name + "_scale", scale_view(parameter.rows, parameter.rows.scale)});
    }
    return tensors;
}

std::vector<NamedTensor> optimizer_tensors(const Parameters& parameters) {
    std::vector<NamedTensor> tensors;
    for (const Parameter& parameter : parameters.all()) {
        const ParameterRows& rows = parameter.rows;
        tensors.push_back({parameter.name + ".first_moment", weight_view(parameter, rows.first_moment)});
        tensors.push_back({parameter.name + ".second_moment", weight_view(parameter, rows.second_moment)});
        if (rows.grid == Grid::none) continue;
        tensors.push_back(
            {parameter.name + "_scale.first_moment", scale_view(rows, rows.scale_first_moment)});
        tensors.push_back(
            {parameter.name + "_scale.second_moment", scale_view(rows, rows.scale_second_moment)});
    }
    return tensors;
}

}  // namespace train_qat
