// One table of all settings that a run's numbers depend on: by flag, with the value in use and the part it
// plays. Who resumes, branches off, shares work or compares ranks asks the table for the roles that matter.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/job/options.h"
#include "model/job/run_plan.h"
#include "model/transformer.h"

namespace train_qat {

enum class SettingRole {
    identity,      // model, data order and optimizer: every step depends on it
    quantization,  // how quantization-aware steps quantize
    plan,          // which steps there are: their learning rates, bits and switch
    layout,        // how work is divided: the last places of numbers
    sharding,      // how work is divided: not even those
    arithmetic,    // which device and kernels compute: the last places
    measurement    // what is measured on the way, and what that costs
};

struct Setting {
    std::string flag;  // without the dash, or what follows from flags: "fp_steps"
    nlohmann::ordered_json value;
    SettingRole role;
};
using RunSettings = std::vector<Setting>;

RunSettings run_settings(const Options& options, const RunPlan& run, const Backend& backend,
                         DType compute_type);

// {flag: value} of these roles, in the order of the table.
using SettingRoles = std::initializer_list<SettingRole>;
nlohmann::ordered_json with_roles(const RunSettings& settings, SettingRoles roles);

// What run.json and checkpoints keep, and a resumed run must share.
inline constexpr SettingRoles recorded_roles = {SettingRole::identity, SettingRole::quantization,
                                                SettingRole::plan};
// What the full-precision steps of two plans must share beside their learning rates.
inline constexpr SettingRoles trunk_roles = {SettingRole::identity};
// "layout" in run.json.
inline constexpr SettingRoles layout_roles = {SettingRole::layout, SettingRole::sharding};
// What must be the same, beside plans, for a job of a sweep to be the same to the last bit.
inline constexpr SettingRoles job_roles = {SettingRole::identity, SettingRole::quantization,
                                           SettingRole::layout, SettingRole::arithmetic,
                                           SettingRole::measurement};

// The dtype of activations and matmul operands that -dtype asks for; on `log` where -dtype auto finds no
// fast bfloat16. std::runtime_error where the device cannot.
DType compute_type(const Options& options, const Backend& backend, std::ostream& log);

// What -logit_rows and -logits ask for, with this dtype of activations. std::runtime_error: -logits does not go with it.
LogitOptions logit_options(const Options& options, DType compute_type);

// Collective. Ranks with other settings or other shards (fingerprints of training and validation data) would
// train something that nobody has asked for: JointError naming the first such rank.
struct DataFingerprints {
    uint64_t training = 0, validation = 0;
};
void check_ranks_agree(Communicator& communicator, const RunSettings& settings, const DataFingerprints& data);

}  // namespace train_qat
