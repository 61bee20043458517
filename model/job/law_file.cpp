#include "model/job/law_file.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/storage/files.h"

namespace train_qat {
namespace {

using Json = nlohmann::json;

constexpr const char* format = "train_qat scaling law 2";
constexpr size_t fewest_samples = 20;

// A value of the file with the way to it, for errors.
class Value {
  public:
    Value(const std::string& file, std::string key, const Json& json)
        : file_(file), key_(std::move(key)), json_(json) {}

    [[noreturn]] void fail(const std::string& what) const {
        throw std::runtime_error("-law " + file_ + ": " + (key_.empty() ? "" : in_quotes(key_) + " ") + what +
                                 "; fit it again with scripts/scaling_law.py");
    }

    Value at(const char* key) const {
        if (!json_.is_object()) fail("is no JSON object");
        const std::string path = key_.empty() ? key : key_ + "." + key;
        if (!json_.contains(key)) Value(file_, path, json_).fail("is missing");
        return {file_, path, json_[key]};
    }

    double finite_number() const {
        if (!json_.is_number()) fail("is no number");
        const double value = json_.get<double>();
        if (!std::isfinite(value)) fail("is " + json_.dump() + ", and must be finite");
        return value;
    }

    // Finite and at least 0.
    double number() const {
        const double value = finite_number();
        if (value < 0) fail("is " + json_.dump() + ", and must be at least 0");
        return value;
    }

    int64_t count() const {
        constexpr double most = 1e15;
        if (!json_.is_number_integer() || number() < 1 || number() > most) fail("is no whole number from 1");
        return json_.get<int64_t>();
    }

    std::string text() const {
        if (!json_.is_string()) fail("is no text");
        return json_.get<std::string>();
    }

    std::vector<double> numbers(size_t fewest, double (Value::*read)() const = &Value::number) const {
        if (!json_.is_array()) fail("is no array of numbers");
        if (json_.size() < fewest)
            fail("has " + std::to_string(json_.size()) + " numbers, fewer than " + std::to_string(fewest));
        std::vector<double> values;
        for (size_t i = 0; i < json_.size(); ++i) values.push_back((element(i).*read)());
        return values;
    }

    // Of as many numbers as the arrays before it, which may be negative.
    std::vector<double> misfits(size_t count) const {
        std::vector<double> values = numbers(0, &Value::finite_number);
        check_length(values.size(), count);
        return values;
    }

    void check_length(size_t length, size_t expected) const {
        if (length != expected)
            fail("has " + std::to_string(length) + " numbers, and the arrays before it have " +
                 std::to_string(expected));
    }

    bool is_null() const { return json_.is_null(); }

    void check_texts() const {
        if (!json_.is_array()) fail("is no array of texts");
        for (size_t i = 0; i < json_.size(); ++i) element(i).text();
    }

    FittedRange range() const {
        const std::vector<double> ends = numbers(2);
        if (ends.size() != 2 || ends[0] > ends[1]) fail("is no range [low, high]");
        return {ends[0], ends[1]};
    }

  private:
    Value element(size_t i) const { return {file_, key_ + "[" + std::to_string(i) + "]", json_[i]}; }

    const std::string& file_;
    const std::string key_;
    const Json& json_;
};

FittedRuns read_fitted_runs(const Value& law) {
    FittedRuns fitted;
    const Value source = law.at("source"), range = law.at("fitted_range");
    fitted.runs = source.at("runs").count();
    fitted.vocabulary = source.at("vocabulary").count();
    source.at("data").check_texts();
    fitted.cooldown = source.at("cooldown").text();
    fitted.parameters = range.at("parameters").range();
    fitted.tokens = range.at("tokens").range();
    fitted.tokens_per_parameter_byte = range.at("tokens_per_parameter_byte").range();
    fitted.qat_fraction = range.at("qat_fraction").range();
    fitted.bits = range.at("bits").numbers(1);
    std::sort(fitted.bits.begin(), fitted.bits.end());
    if (const Value reference = range.at("full_precision"); !reference.is_null())
        fitted.full_precision = {reference.at("parameters").range(), reference.at("tokens").range()};
    return fitted;
}

std::vector<LossSample> read_samples(const Value& bootstrap) {
    std::vector<LossSample> samples;
    for (const CoefficientName& coefficient : coefficient_names) {
        const Value array = bootstrap.at(coefficient.name);
        const std::vector<double> values = array.numbers(fewest_samples);
        if (samples.empty()) samples.resize(values.size());
        array.check_length(values.size(), samples.size());
        for (size_t i = 0; i < values.size(); ++i) samples[i].*coefficient.value = values[i];
    }
    const std::vector<double> of_loss = bootstrap.at("loss_misfit").misfits(samples.size());
    const std::vector<double> of_reference = bootstrap.at("full_precision_misfit").misfits(samples.size());
    const std::vector<double> of_fraction = bootstrap.at("fraction_misfit").misfits(samples.size());
    for (size_t i = 0; i < samples.size(); ++i) {
        samples[i].loss_misfit = of_loss[i];
        samples[i].full_precision_misfit = of_reference[i];
        samples[i].fraction_misfit = of_fraction[i];
    }
    return samples;
}

std::vector<FractionSample> read_fraction_samples(const Value& bootstrap) {
    const std::vector<double> constants = bootstrap.at("a").numbers(1);
    const std::vector<double> misfits = bootstrap.at("misfit").misfits(constants.size());
    std::vector<FractionSample> samples;
    for (size_t i = 0; i < constants.size(); ++i) samples.push_back({constants[i], misfits[i]});
    return samples;
}

Json parse(const std::string& path) {
    const auto damaged = [&](const std::string& what) -> std::runtime_error {
        return std::runtime_error("-law " + path + ": is no valid JSON" + what);
    };
    std::string text;
    try {
        text = read_text_file(path);
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(std::string("-law ") + error.what());
    }
    try {
        return Json::parse(text);
    } catch (const Json::parse_error& error) {
        throw damaged(" near byte " + std::to_string(error.byte));
    } catch (const Json::out_of_range&) {
        throw damaged(": it has a number that is too large");
    }
}

}  // namespace

ScalingLaw read_scaling_law(const std::string& path) {
    const Json json = parse(path);
    const Value file(path, "", json);
    if (const Value named = file.at("format"); named.text() != format)
        named.fail("is " + in_quotes(named.text()) + " and not \"" + format + "\"");
    ScalingLaw law;
    law.path = path;
    law.fitted = read_fitted_runs(file);
    const Value loss_law = file.at("loss_law"), fraction_law = file.at("fraction_law");
    const Value coefficients = loss_law.at("coefficients");
    for (const CoefficientName& coefficient : coefficient_names)
        law.coefficients.*coefficient.value = coefficients.at(coefficient.name).number();
    law.samples = read_samples(loss_law.at("bootstrap"));
    law.fraction_constant = fraction_law.at("a").number();
    law.fraction_samples = read_fraction_samples(fraction_law.at("bootstrap"));
    const Value by = file.at("optimal_fraction");
    law.fraction_by_loss = by.text() == "loss_law";
    if (!law.fraction_by_loss && by.text() != "fraction_law")
        by.fail("is " + in_quotes(by.text()) + " and neither \"loss_law\" nor \"fraction_law\"");
    return law;
}

}  // namespace train_qat
