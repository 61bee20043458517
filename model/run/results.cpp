#include "model/run/results.h"

#include <cmath>

#include "model/storage/files.h"
#include "model/units.h"

namespace train_qat {

namespace {

nlohmann::json optional_number(const std::optional<double>& value) {
    return value && std::isfinite(*value) ? nlohmann::json(*value) : nlohmann::json();
}

std::optional<double> number_at(const nlohmann::json& json, const char* key) {
    return json.contains(key) && json[key].is_number() ? std::optional<double>(json[key].get<double>())
                                                       : std::nullopt;
}

nlohmann::ordered_json bytes_of(const DataParallel::StepTraffic& traffic) {
    return {{"gradients", traffic.gradients},
            {"weights", traffic.weights},
            {"unpacked_weights", traffic.unpacked_weights}};
}

nlohmann::ordered_json prediction_of(const std::optional<Prediction>& prediction) {
    if (!prediction) return nullptr;
    return {{"value", optional_number(prediction->value)},
            {"low", optional_number(prediction->low)},
            {"high", optional_number(prediction->high)}};
}

// Intervals are 90%; null: the law predicts none.
nlohmann::ordered_json predictions_record(const LawPredictions& predictions) {
    return {{"law", predictions.law->path},
            {"optimal_fraction", prediction_of(predictions.optimal_fraction)},
            {"loss_at_optimal_fraction", prediction_of(predictions.at_optimal)},
            {"loss_at_qat_fraction", prediction_of(predictions.at_used)},
            {"loss_in_full_precision", prediction_of(predictions.full_precision)},
            {"extrapolated", predictions.extrapolated}};
}

nlohmann::ordered_json plan_record(const Plan& plan) {
    nlohmann::ordered_json record = {{"parameters", plan.parameters},
                                     {"bits", plan.bits},
                                     {"tokens_per_step", plan.tokens_per_step},
                                     {"total_steps", plan.total_steps},
                                     {"fp_steps", plan.fp_steps},
                                     {"tokens_per_parameter_byte", plan.tokens_per_parameter_byte},
                                     {"predicted_fraction", optional_number(plan.predicted_fraction)},
                                     {"qat_fraction", plan.qat_fraction}};
    if (plan.predictions) record["predictions"] = predictions_record(*plan.predictions);
    return record;
}

std::string traffic_row(const char* name, const DataParallel::StepTraffic& traffic) {
    if (traffic.total() == 0) return "";
    std::string row = formatted("  %-52s %8s", name, format_bytes(traffic.total()).c_str());
    if (traffic.weights > 0)
        row +=
            formatted(" (gradients %s, weights %s, %.1fx less than unpacked)",
                      format_bytes(traffic.gradients).c_str(), format_bytes(traffic.weights).c_str(),
                      static_cast<double>(traffic.unpacked_weights) / static_cast<double>(traffic.weights));
    return row + "\n";
}

}  // namespace

nlohmann::ordered_json losses_to_json(const RunResults& results) {
    return {{"full_precision_at_switch", optional_number(results.full_precision)},
            {"rounded_at_switch", optional_number(results.rounded)},
            {"quantized", optional_number(results.quantized)}};
}

void read_losses(const nlohmann::json& json, RunResults& results) {
    results.full_precision = number_at(json, "full_precision_at_switch");
    results.rounded = number_at(json, "rounded_at_switch");
    results.quantized = number_at(json, "quantized");
}

std::string peak_line(const PeakFlops& peak) {
    const bool tera = peak.per_second >= 1e12;
    return formatted("MFU is stated against %.1f %s (%s)", peak.per_second / (tera ? 1e12 : 1e9),
                     tera ? "TFLOP/s" : "GFLOP/s", peak.source.c_str());
}

nlohmann::ordered_json run_record(const RunSettings& settings, const Plan& plan, const RunResults& results,
                                  const std::string& device, const PeakFlops& peak) {
    nlohmann::ordered_json outcome = losses_to_json(results);
    outcome["tokens_per_second_fp"] = results.fp_tokens_per_second;
    outcome["tokens_per_second_qat"] = results.qat_tokens_per_second;
    outcome["bytes_sent_per_step"] = {{"FP", bytes_of(results.fp_traffic)},
                                      {"QAT", bytes_of(results.qat_traffic)}};
    outcome["sample"] = results.sample;
    return {{"configuration", with_roles(settings, recorded_roles)},
            {"layout", with_roles(settings, layout_roles)},
            {"plan", plan_record(plan)},
            {"device", device},
            {"peak", {{"flops_per_second", peak.per_second}, {"source", peak.source}}},
            {"compiler", __VERSION__},
            {"results", std::move(outcome)}};
}

std::string results_table(const RunResults& results, const Plan& plan) {
    std::string table;
    const auto loss_row = [&](const std::string& name, const std::optional<double>& loss) {
        if (!loss) return;
        table += formatted("  %-52s %8.4f\n", name.c_str(), *loss);
    };
    const auto speed_row = [&](const char* name, double tokens_per_second) {
        if (tokens_per_second <= 0) return;
        table += formatted("  %-52s %8.0f tokens/s\n", name, tokens_per_second);
    };
    const std::string bits = bits_with_unit(plan.bits);
    if (results.full_precision || results.quantized) table += "validation loss\n";
    loss_row(plan.qat_steps > 0 ? "full precision, at the switch" : "full precision", results.full_precision);
    loss_row("the same model rounded to " + bits + " (no QAT)", results.rounded);
    loss_row("quantization-aware trained, " + bits, results.quantized);
    if (results.quantized && plan.predictions && plan.predictions->at_used) {
        const Prediction& loss = *plan.predictions->at_used;
        table += formatted("  %-52s %8.4f [%.4f, %.4f]\n", "  predicted by the loss law [90% interval]",
                           loss.value, loss.low, loss.high);
    }
    table += "speed\n";
    speed_row("full-precision steps", results.fp_tokens_per_second);
    speed_row("quantization-aware steps", results.qat_tokens_per_second);
    if (results.fp_traffic.total() + results.qat_traffic.total() > 0) table += "sent by a rank in a step\n";
    table += traffic_row("full-precision steps", results.fp_traffic);
    table += traffic_row("quantization-aware steps", results.qat_traffic);
    if (!results.sample.empty()) table += "\nsample\n" + results.sample + "\n";
    return table;
}

}  // namespace train_qat
