// The two tables in device memory by which one launch works on all parameters: the parameters, and blocks of whole
// rows, one for each thread block. They are kept from call to call: between two steps nothing in them changes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/platform/device.h"
#include "kernels/weights.h"

namespace train_qat::CU_BACKEND {

constexpr int update_threads = 256, update_warps = update_threads / 32;

enum class WeightForm : uint8_t { absent, float32, bfloat16, codes };

// A parameter as kernels see it. With R rows, C columns, G groups per row:
struct alignas(16) UpdateParameter {
    float* master = nullptr;               // (R, C), or
    bfloat16* narrow_master = nullptr;     // (R, C)
    float* gradient = nullptr;             // (R, C)
    float* first_moment = nullptr;         // (R, C)
    float* second_moment = nullptr;        // (R, C)
    float* scale = nullptr;                // (R, G)
    float* scale_gradient = nullptr;       // (R, G)
    float* scale_first_moment = nullptr;   // (R, G)
    float* scale_second_moment = nullptr;  // (R, G)
    void* levels = nullptr;                // first row of this parameter: WeightLayout::numbers
    float* row_scale = nullptr;            // (R), effective
    float* group_scale = nullptr;          // (R, G), effective; codes with G > 1
    int32_t rows = 0;
    int32_t columns = 0;
    int32_t code_row_bytes = 0;
    int32_t group = 0;   // columns per scale
    int32_t groups = 0;  // G; 0 without a grid
    int32_t lanes_per_group = 32;
    int32_t first_block = 0, blocks = 0;  // in the table of row blocks
    float scale_gradient_factor = 1.0f;
    uint32_t number = 0;        // ParameterRows::number,
    int64_t first_element = 0;  // first_element
    Grid grid = Grid::none;
    WeightForm form = WeightForm::absent;
    bool vectors = false;  // four neighbouring numbers are one access, and belong to one group
    bool decay = true;

    bool operator==(const UpdateParameter&) const = default;
};

struct alignas(16) RowBlock {
    int32_t parameter;
    int32_t first_row;
    int32_t rows;
};

// Both tables in device memory.
struct UpdateTables {
    const UpdateParameter* parameters = nullptr;
    const RowBlock* row_blocks = nullptr;
    int64_t parameter_count = 0;
    int64_t block_count = 0;
};

// Builds the tables of a call, and keeps them for calls with the same parameters.
class WeightTables {
  public:
    // Whether a weight's quantized form is packed codes (kernels/codes.h) or plain levels. The same answer for the same
    // arguments.
    using StoresCodes = std::function<bool(const ComputeWeight& weight, Grid grid, int64_t group)>;

    WeightTables(Device& device, StoresCodes stores_codes)
        : device_(device), stores_codes_(std::move(stores_codes)) {}

    // For operations by groups.
    UpdateTables by_groups(std::span<const ParameterRows> parameters);
    // For operations by steps. Chooses the forms of the weights.
    UpdateTables by_steps(std::span<const ParameterRows> parameters);
    // For quantize(), with messages (kernels/weights.h) of whole parameters as destinations of these rows.
    UpdateTables to_messages(std::span<const ParameterRows> rows, std::span<const WeightMessage> messages);

    // Decides the form of each ComputeWeight and writes it there: codes where stores_codes says so and all parameters
    // of the call that share the weight have the same grid and group.
    void choose_forms(std::span<const ParameterRows> parameters);

  private:
    struct Kept {
        std::vector<UpdateParameter> parameters;
        UpdateTables tables;
        DeviceBuffer memory;
    };
    UpdateTables uploaded(Kept& kept, std::vector<UpdateParameter>&& parameters, int64_t fewest_rows);

    Device& device_;
    const StoresCodes stores_codes_;
    Kept by_groups_, by_steps_, to_messages_;
};

}  // namespace train_qat::CU_BACKEND
