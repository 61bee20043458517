// What run.json and checkpoints say of a model, and the model that they say it of.
#pragma once

#include <nlohmann/json.hpp>

#include "model/config.h"

namespace train_qat {

// {flag or name: value}, in the order of run.json; all that a step's mathematics needs to know.
nlohmann::ordered_json model_settings(const ModelConfig& config);

// The model of recorded settings, which may have been written before some of them existed: those have one value only,
// see unnamed_model_setting. nlohmann::json::exception or std::runtime_error where they describe none.
ModelConfig model_of(const nlohmann::json& settings);

// What models were that were recorded before the setting existed; null for settings that have always been there.
nlohmann::json unnamed_model_setting(const nlohmann::json& settings, const std::string& name);

}  // namespace train_qat
