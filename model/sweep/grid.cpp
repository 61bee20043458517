#include "model/sweep/grid.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>

#include "model/job/options.h"
#include "model/plan/plan.h"
#include "model/storage/files.h"
#include "model/units.h"

namespace train_qat {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t largest_sweep = 100'000;

enum class Kind { count, number, fraction, cooldown, seed };

struct Key {
    const char* name;
    const char* prefix;  // of its value in the name of a run
    Kind kind;
};
constexpr std::array<Key, 7> keys = {{{"n", "n", Kind::count},
                                      {"tokens", "t", Kind::count},
                                      {"b", "b", Kind::number},
                                      {"qat_frac", "f", Kind::fraction},
                                      {"cooldown", "", Kind::cooldown},
                                      {"seed", "s", Kind::seed},
                                      {"lr", "lr", Kind::number}}};

const Key* find_key(const std::string& name) {
    const auto found =
        std::find_if(keys.begin(), keys.end(), [&](const Key& key) { return name == key.name; });
    return found == keys.end() ? nullptr : &*found;
}

// Of a number in JSON: whole numbers without a decimal point, so that 3e6 is a count.
std::string text_of(const Json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number_float()) {
        const double number = value.get<double>();
        if (number == std::floor(number) && std::abs(number) < 9e15)
            return std::to_string(static_cast<int64_t>(number));
    }
    return value.dump();
}

// "1.5M", "1234567": the shorter one of two exact texts.
std::string short_count(int64_t count) {
    constexpr std::array<std::pair<int64_t, const char*>, 4> units = {
        {{1'000'000'000'000, "T"}, {1'000'000'000, "B"}, {1'000'000, "M"}, {1000, "K"}}};
    const std::string plain = std::to_string(count);
    for (const auto& [unit, suffix] : units) {
        if (count < unit || count % (unit / 1000) != 0) continue;
        std::string decimals = std::to_string(1000 + count % unit / (unit / 1000)).substr(1);
        decimals.erase(decimals.find_last_not_of('0') + 1);
        const std::string text =
            std::to_string(count / unit) + (decimals.empty() ? "" : "." + decimals) + suffix;
        return text.size() < plain.size() ? text : plain;
    }
    return plain;
}

template <typename Number>
Number number_of(const std::string& text, const std::string& expected) {
    if (const std::optional<Number> number = parse_number<Number>(text)) return *number;
    throw std::runtime_error("cannot read " + in_quotes(text) + ": expected " + expected);
}

std::string short_number(const std::string& text, const std::string& expected) {
    const auto number = number_of<double>(text, expected);
    if (!std::isfinite(number))
        throw std::runtime_error("cannot read " + in_quotes(text) + ": must be finite");
    return text_of(Json(number + 0.0));
}

std::string name_of_value(Kind kind, const std::string& text) {
    switch (kind) {
        case Kind::count:
            return short_count(parse_count(text, "count"));
        case Kind::number:
            return short_number(text, "a number");
        case Kind::fraction:
            return text == "auto" ? text : short_number(text, "a number from 0 to 1, or auto");
        case Kind::cooldown:
            return to_string(parse_cooldown(text));
        case Kind::seed:
            return std::to_string(number_of<uint64_t>(text, "a whole number from 0"));
    }
    throw std::logic_error("sweep grid: unknown kind of key");
}

SweepValue read_value(const Key& key, const Json& json) {
    const bool right_type = json.is_string() || (json.is_number() && key.kind != Kind::cooldown);
    if (!right_type) {
        throw std::runtime_error("cannot take " + json.dump(-1, ' ', false, Json::error_handler_t::replace) +
                                 ": expected " + (key.kind == Kind::cooldown ? "" : "a number or ") +
                                 "a text as on the command line");
    }
    const std::string text = text_of(json);
    return {text, name_of_value(key.kind, text)};
}

SweepAxis read_axis(const Key& key, const Json& json) {
    SweepAxis axis{key.name, {}};
    std::set<std::string> names;
    const Json values = json.is_array() ? json : Json::array({json});
    if (values.empty()) throw std::runtime_error("has no values; give at least one, or drop the key");
    for (const Json& value : values) {
        axis.values.push_back(read_value(key, value));
        if (!names.insert(axis.values.back().name).second)
            throw std::runtime_error("has the value " + axis.values.back().text + " twice");
    }
    return axis;
}

// Keys twice in one object are legal JSON, of which readers keep one.
Json parse_grid(const std::string& path) {
    const std::string text = read_text_file(path);
    std::set<std::string> seen;
    std::string twice;
    const auto watch = [&](int depth, Json::parse_event_t event, Json& json) {
        if (event == Json::parse_event_t::key && depth == 1 && !seen.insert(json.get<std::string>()).second)
            twice = json.get<std::string>();
        return true;
    };
    Json grid;
    try {
        grid = Json::parse(text, watch);
    } catch (const nlohmann::json::parse_error& error) {
        throw_file_error(path, "is no valid JSON near byte " + std::to_string(error.byte));
    } catch (const nlohmann::json::out_of_range&) {
        throw_file_error(path, "holds a number too large for any");
    }
    if (!grid.is_object())
        throw_file_error(path, "must be a JSON object such as {\"b\": [2, 4], \"qat_frac\": [0.1, 0.2]}");
    if (!twice.empty()) throw_file_error(path, "has the key " + in_quotes(twice) + " twice");
    return grid;
}

size_t run_count(const SweepGrid& grid) {
    size_t count = 1;
    for (const SweepAxis& axis : grid.axes) count = std::min(count * axis.values.size(), largest_sweep + 1);
    return count;
}

}  // namespace

SweepGrid read_sweep_grid(const std::string& path) {
    const Json json = parse_grid(path);
    SweepGrid grid{path, {}};
    for (const auto& item : json.items())
        if (!find_key(item.key()))
            throw_file_error(path, "unknown key " + in_quotes(item.key()) +
                                       "; a sweep varies n, tokens, b, qat_frac, cooldown, seed and lr");
    for (const Key& key : keys) {
        if (!json.contains(key.name)) continue;
        try {
            grid.axes.push_back(read_axis(key, json.at(key.name)));
        } catch (const std::runtime_error& error) {
            throw_file_error(path, in_quotes(key.name) + ": " + error.what());
        }
    }
    if (run_count(grid) > largest_sweep)
        throw_file_error(path,
                         "has more than " + std::to_string(largest_sweep) + " runs; shorten its arrays");
    return grid;
}

std::vector<SweepRun> sweep_runs(const SweepGrid& grid) {
    std::vector<SweepRun> runs = {{}};
    for (const SweepAxis& axis : grid.axes) {
        std::vector<SweepRun> longer;
        for (const SweepRun& run : runs)
            for (const SweepValue& value : axis.values) {
                SweepRun next = run;
                next.name += (run.name.empty() ? "" : "_") + (find_key(axis.key)->prefix + value.name);
                next.flags.push_back("-" + axis.key);
                next.flags.push_back(value.text);
                longer.push_back(std::move(next));
            }
        runs = std::move(longer);
    }
    if (runs.size() == 1) runs[0].name = "run";
    return runs;
}

std::vector<std::string> with_flags(const std::vector<std::string>& base,
                                    const std::vector<std::string>& flags) {
    std::set<std::string> overridden;
    for (const std::string& flag : flags)
        if (const auto name = flag_name(flag)) overridden.insert(*name);
    std::vector<std::string> result, without_value;
    for (size_t i = 0; i < base.size(); ++i) {
        const auto name = flag_name(base[i]);
        if (!name || !overridden.contains(*name)) {
            result.push_back(base[i]);
            continue;
        }
        if (base[i].find('=') != std::string::npos) continue;
        const bool has_value = i + 1 < base.size() && !flag_name(base[i + 1]);
        if (has_value)
            ++i;
        else
            without_value.push_back(base[i]);
    }
    result.insert(result.end(), flags.begin(), flags.end());
    // Last, where no other flag can be taken for its value: the command line refuses it by name.
    result.insert(result.end(), without_value.begin(), without_value.end());
    return result;
}

}  // namespace train_qat
