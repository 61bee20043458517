#include "model/storage/parameter_tensors.h"

namespace train_qat {

namespace {

// Some rows of a parameter, and whether they are a part of it.
struct Part {
    const Parameter& parameter;
    ParameterRows rows;
    bool divided;
};

Part part_of(const Parameters& parameters, const Parameter& parameter, const StateShard& part) {
    if (parameters.shard().parts > 1) return {parameter, parameter.rows, true};
    const int64_t rows = parameter.whole.rows;
    const int64_t first = first_row(rows, part.part, part.parts);
    return {parameter, rows_of(parameter.whole, first, first_row(rows, part.part + 1, part.parts) - first),
            part.parts > 1};
}

NamedTensor named(const Part& part, const std::string& name, void* data, DType dtype, int64_t columns) {
    NamedTensor result;
    result.name = part.parameter.name + name;
    if (part.parameter.is_vector)
        result.tensor = Tensor(part.rows.rows > 0 ? data : nullptr, dtype, {columns});
    else
        result.tensor = Tensor(data, dtype, {part.rows.rows, columns});
    if (part.divided) {
        result.rows = part.parameter.whole.rows;
        result.first_row = part.parameter.is_vector ? 0 : part.rows.first_element / part.rows.columns;
    }
    return result;
}

NamedTensor weights(const Part& part, const char* name, void* data, DType dtype = DType::float32) {
    return named(part, name, data, dtype, part.rows.columns);
}

NamedTensor scales(const Part& part, const char* name, float* data) {
    return named(part, name, data, DType::float32, part.rows.columns / part.rows.group);
}

}  // namespace

std::vector<NamedTensor> model_tensors(const Parameters& parameters, const StateShard& shard) {
    std::vector<NamedTensor> tensors;
    for (const Parameter& parameter : parameters.all()) {
        const Part part = part_of(parameters, parameter, shard);
        const ParameterRows& rows = part.rows;
        tensors.push_back(rows.narrow_master != nullptr
                              ? weights(part, "", rows.narrow_master, DType::bfloat16)
                              : weights(part, "", rows.master));
        if (rows.grid != Grid::none) tensors.push_back(scales(part, "_scale", rows.scale));
    }
    return tensors;
}

std::vector<NamedTensor> optimizer_tensors(const Parameters& parameters, const StateShard& shard) {
    std::vector<NamedTensor> tensors;
    for (const Parameter& parameter : parameters.all()) {
        const Part part = part_of(parameters, parameter, shard);
        const ParameterRows& rows = part.rows;
        tensors.push_back(weights(part, ".first_moment", rows.first_moment));
        tensors.push_back(weights(part, ".second_moment", rows.second_moment));
        if (rows.grid == Grid::none) continue;
        tensors.push_back(scales(part, "_scale.first_moment", rows.scale_first_moment));
        tensors.push_back(scales(part, "_scale.second_moment", rows.scale_second_moment));
    }
    return tensors;
}

}  // namespace train_qat
