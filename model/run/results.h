// What came out of a run: losses, speed, bytes and text, for people and for run.json.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "model/data_parallel.h"
#include "model/job/settings.h"
#include "model/plan/plan.h"

namespace train_qat {

// Losses on the validation shards, speed, and text, as far as they are known.
struct RunResults {
    std::optional<double> full_precision;  // at the switch, or at the end of a run without one
    std::optional<double> rounded;         // the same weights, only rounded (post-training quantization)
    std::optional<double> quantized;       // at the end of quantization-aware training
    double fp_tokens_per_second = 0, qat_tokens_per_second = 0;  // 0: no steps in this process
    // What a rank sends in a step; 0 bytes: nothing, or no such steps.
    DataParallel::StepTraffic fp_traffic, qat_traffic;
    std::string sample;
};

// The losses {full_precision_at_switch, rounded_at_switch, quantized}; null: not measured.
nlohmann::ordered_json losses_to_json(const RunResults& results);
// Puts those losses into `results`.
void read_losses(const nlohmann::json& json, RunResults& results);

// What the model FLOPs utilization (MFU) is a share of.
struct PeakFlops {
    double per_second = 0;  // of all ranks' devices together, in the compute type; 0: unknown
    std::string source;     // Backend::peak_source of rank 0
};

// MFU is stated against 989.0 TFLOP/s (data sheet)
std::string peak_line(const PeakFlops& peak);

// The content of run.json. device: as the backend describes itself.
nlohmann::ordered_json run_record(const RunSettings& settings, const Plan& plan, const RunResults& results,
                                  const std::string& device, const PeakFlops& peak);

// The closing table for people, and the sample of text.
std::string results_table(const RunResults& results, const Plan& plan);

}  // namespace train_qat
