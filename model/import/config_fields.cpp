#include "model/import/config_fields.h"

#include <cmath>

#include "model/storage/files.h"

namespace train_qat {

namespace {

const nlohmann::json none;

// Short enough for a line.
std::string shown(const nlohmann::json& value) {
    constexpr size_t longest = 80;
    const std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    return text.size() <= longest ? text : text.substr(0, longest) + "...";
}

nlohmann::json parsed(const std::string& path) {
    nlohmann::json json = nlohmann::json::parse(read_text_file(path), nullptr, false);
    if (json.is_discarded()) throw_file_error(path, "is no JSON; copy it again");
    return json;
}

}  // namespace

ConfigFields::ConfigFields(std::string path, std::string field, nlohmann::json object)
    : path_(std::move(path)), field_(std::move(field)), object_(std::move(object)) {
    if (!object_.is_object())
        throw_file_error(path_, (field_.empty() ? "" : in_quotes(field_) + " ") + "is " + shown(object_) +
                                    "; it must be a JSON object");
}

ConfigFields::ConfigFields(const std::string& path) : ConfigFields(path, "", parsed(path)) {}

void ConfigFields::fail(const std::string& name, const std::string& message) const {
    throw_file_error(path_, in_quotes(field_.empty() ? name : field_ + "." + name) + " " + message);
}

void ConfigFields::refuse(const char* name, const std::string& message) const {
    fail(name, (object_.contains(name) ? "is " + shown(object_.at(name)) : "is missing") + "; " + message);
}

const nlohmann::json& ConfigFields::value(const char* name) {
    read_.insert(name);
    const auto found = object_.find(name);
    return found == object_.end() ? none : *found;
}

std::optional<int64_t> ConfigFields::optional_size(const char* name, int64_t most) {
    const nlohmann::json& number = value(name);
    if (number.is_null()) return std::nullopt;
    if (!number.is_number_unsigned() || number.get<uint64_t>() < 1 ||
        number.get<uint64_t>() > static_cast<uint64_t>(most))
        refuse(name, "it must be a whole number from 1 to " + std::to_string(most));
    return number.get<int64_t>();
}

int64_t ConfigFields::size(const char* name, int64_t most) {
    const std::optional<int64_t> number = optional_size(name, most);
    if (!number) refuse(name, "the model needs it");
    return *number;
}

std::optional<double> ConfigFields::optional_positive(const char* name) {
    const nlohmann::json& number = value(name);
    if (number.is_null()) return std::nullopt;
    if (!number.is_number() || !std::isfinite(number.get<double>()) || number.get<double>() <= 0)
        refuse(name, "it must be a number above 0");
    return number.get<double>();
}

double ConfigFields::positive(const char* name) {
    const std::optional<double> number = optional_positive(name);
    if (!number) refuse(name, "the model needs it");
    return *number;
}

bool ConfigFields::flag(const char* name, bool otherwise) {
    const nlohmann::json& truth = value(name);
    if (truth.is_null()) return otherwise;
    if (!truth.is_boolean()) refuse(name, "it must be true or false");
    return truth.get<bool>();
}

std::string ConfigFields::text(const char* name) {
    const nlohmann::json& string = value(name);
    if (!string.is_string()) refuse(name, "it must be a text");
    return string.get<std::string>();
}

std::vector<nlohmann::json> ConfigFields::list(const char* name) {
    const nlohmann::json& array = value(name);
    if (array.is_null()) return {};
    if (!array.is_array()) refuse(name, "it must be a list");
    return array.get<std::vector<nlohmann::json>>();
}

void ConfigFields::require(const char* name, const nlohmann::json& only, const std::string& supported) {
    const nlohmann::json& found = value(name);
    if (!found.is_null() && found != only) refuse(name, supported);
}

void ConfigFields::refuse_others(const std::set<std::string_view>& harmless) const {
    for (const auto& [name, found] : object_.items())
        if (read_.count(name) == 0 && harmless.count(name) == 0)
            refuse(name.c_str(),
                   "this field is not known here and may change what the model computes; remove "
                   "it if it does not");
}

}  // namespace train_qat
