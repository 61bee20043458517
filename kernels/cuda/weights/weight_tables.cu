// The tables by which one launch works on all parameters, and the choice of each weight's form.
#include "kernels/cuda/weights/weight_tables.h"

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>
#include <utility>

#include "kernels/cuda/weights/weight_layout.h"

namespace train_qat::CU_BACKEND {

namespace {

// Numbers of a row block: enough work for a thread block to outweigh its start, and enough blocks to fill a
// device.
constexpr int64_t block_elements = 16384;

UpdateParameter described(const ParameterRows& p) {
    // Positions within a row and within a row block are int.
    constexpr int64_t most = 1 << 30;
    if (p.rows > most || p.columns > most)
        throw std::logic_error("weights: a parameter has more than 2^30 rows or columns");
    UpdateParameter result;
    result.master = p.master;
    result.narrow_master = p.narrow_master;
    result.gradient = p.gradient;
    result.first_moment = p.first_moment;
    result.second_moment = p.second_moment;
    result.rows = static_cast<int32_t>(p.rows);
    result.columns = static_cast<int32_t>(p.columns);
    result.grid = p.grid;
    result.decay = p.decay;
    result.number = p.number;
    result.first_element = p.first_element;
    if (p.grid != Grid::none) {
        result.scale = p.scale;
        result.scale_gradient = p.scale_gradient;
        result.scale_first_moment = p.scale_first_moment;
        result.scale_second_moment = p.scale_second_moment;
        result.scale_gradient_factor = p.scale_gradient_factor;
        result.group = static_cast<int32_t>(p.group);
        result.groups = static_cast<int32_t>(p.columns / p.group);
    }
    return result;
}

// Where the levels and effective scales of a parameter go.
void add_destination(UpdateParameter& result, const ParameterRows& p) {
    const ComputeWeight& weight = *p.compute;
    const WeightLayout layout = layout_of(weight, p.first_row);
    result.levels = layout.numbers;
    result.row_scale = layout.row_scale;
    if (weight.codes == Grid::none) {
        result.form = weight.dtype == DType::bfloat16 ? WeightForm::bfloat16 : WeightForm::float32;
        return;
    }
    result.form = WeightForm::codes;
    result.code_row_bytes = static_cast<int32_t>(layout.row_bytes);
    result.group_scale = layout.group_scale;
}

void add_message(UpdateParameter& result, const ParameterRows& p, const WeightMessage& message) {
    const int64_t first = p.first_element / p.columns;
    result.form = WeightForm::codes;
    result.code_row_bytes = static_cast<int32_t>(message.row_bytes);
    result.levels = static_cast<unsigned char*>(message.numbers) + first * message.row_bytes;
    float* const scales = message.scales + first * message.scales_per_row;
    (result.groups == 1 ? result.row_scale : result.group_scale) = scales;
}

bool allows_vectors(const UpdateParameter& p) {
    if (p.columns % 4 != 0 || p.group % 4 != 0) return false;
    for (const float* data : {p.master, p.gradient, p.first_moment, p.second_moment})
        if (!vector_aligned<4>(data)) return false;
    if (!vector_aligned<4>(p.narrow_master)) return false;
    if (p.form == WeightForm::bfloat16) return vector_aligned<4>(static_cast<const bfloat16*>(p.levels));
    return vector_aligned<4>(static_cast<const float*>(p.levels));
}

// Lanes that a group keeps busy.
int32_t lanes_for(const UpdateParameter& p) {
    const int32_t accesses = p.group / (p.vectors ? 4 : 1);
    int32_t lanes = 1;
    while (lanes < accesses && lanes < 32) lanes *= 2;
    return lanes;
}

}  // namespace

UpdateTables WeightTables::uploaded(Kept& kept, std::vector<UpdateParameter>&& parameters,
                                    int64_t fewest_rows) {
    int64_t count = 0;
    const auto rows_per_block = [&](const UpdateParameter& p) {
        return std::max(fewest_rows, block_elements / p.columns);
    };
    for (size_t i = 0; i < parameters.size(); ++i) {
        UpdateParameter& p = parameters[i];
        p.vectors = allows_vectors(p);
        p.lanes_per_group = lanes_for(p);
        p.first_block = static_cast<int32_t>(count);
        p.blocks = static_cast<int32_t>((p.rows + rows_per_block(p) - 1) / rows_per_block(p));
        count += p.blocks;
    }
    if (count > std::numeric_limits<int32_t>::max())
        throw std::logic_error("weights: more row blocks of parameters than a launch can have");
    // The row blocks follow from the parameters.
    if (parameters == kept.parameters) return kept.tables;

    std::vector<RowBlock> blocks;
    blocks.reserve(count);
    for (size_t i = 0; i < parameters.size(); ++i) {
        const int64_t rows = parameters[i].rows, step = rows_per_block(parameters[i]);
        for (int64_t first = 0; first < rows; first += step)
            blocks.push_back({static_cast<int32_t>(i), static_cast<int32_t>(first),
                              static_cast<int32_t>(std::min(step, rows - first))});
    }
    const auto parameter_bytes = static_cast<int64_t>(parameters.size() * sizeof(UpdateParameter));
    const auto block_bytes = static_cast<int64_t>(blocks.size() * sizeof(RowBlock));
    // Until the tables are complete none are kept.
    kept.parameters.clear();
    if (parameter_bytes + block_bytes > kept.memory.bytes()) {
        kept.memory = DeviceBuffer();
        kept.memory = DeviceBuffer(device_, parameter_bytes + block_bytes);
    }
    auto* const memory = static_cast<unsigned char*>(kept.memory.data());
    device_.runtime().copy_to_device(memory, parameters.data(), parameter_bytes);
    device_.runtime().copy_to_device(memory + parameter_bytes, blocks.data(), block_bytes);
    kept.tables = {reinterpret_cast<const UpdateParameter*>(memory),
                   reinterpret_cast<const RowBlock*>(memory + parameter_bytes), std::ssize(parameters),
                   count};
    kept.parameters = std::move(parameters);
    return kept.tables;
}

UpdateTables WeightTables::by_groups(std::span<const ParameterRows> parameters) {
    std::vector<UpdateParameter> table;
    for (const ParameterRows& p : parameters) table.push_back(described(p));
    // Each warp of a block has a row, even where rows are long.
    return uploaded(by_groups_, std::move(table), update_warps);
}

UpdateTables WeightTables::by_steps(std::span<const ParameterRows> parameters) {
    choose_forms(parameters);
    std::vector<UpdateParameter> table;
    for (const ParameterRows& p : parameters) {
        table.push_back(described(p));
        if (p.compute != nullptr) add_destination(table.back(), p);
    }
    return uploaded(by_steps_, std::move(table), 1);
}

UpdateTables WeightTables::to_messages(std::span<const ParameterRows> rows,
                                       std::span<const WeightMessage> messages) {
    std::vector<UpdateParameter> table;
    for (size_t i = 0; i < rows.size(); ++i) {
        table.push_back(described(rows[i]));
        add_message(table.back(), rows[i], messages[i]);
    }
    return uploaded(to_messages_, std::move(table), 1);
}

void WeightTables::choose_forms(std::span<const ParameterRows> parameters) {
    std::map<ComputeWeight*, std::vector<const ParameterRows*>> weights;
    for (const ParameterRows& p : parameters)
        if (p.compute != nullptr) weights[p.compute].push_back(&p);
    for (const auto& [weight, parts] : weights) {
        const ParameterRows& first = *parts.front();
        const bool alike = std::all_of(parts.begin(), parts.end(), [&](const ParameterRows* part) {
            return part->grid == first.grid && (part->grid == Grid::none || part->group == first.group);
        });
        const bool codes =
            alike && first.grid != Grid::none && stores_codes_(*weight, first.grid, first.group);
        weight->codes = codes ? first.grid : Grid::none;
        weight->code_group = codes ? first.group : 0;
        // Rows without a scale of their own have a one in its place.
        weight->scaled = std::any_of(parts.begin(), parts.end(), [](const ParameterRows* part) {
            return part->grid != Grid::none && part->group == part->columns;
        });
    }
}

}  // namespace train_qat::CU_BACKEND
