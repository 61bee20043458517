#include "data/tokenizers/json_fields.h"

#include <stdexcept>

namespace train_qat {

using nlohmann::json;

namespace {

// Of a value, for messages: damaged text too.
std::string shortened(const json& value) {
    constexpr size_t most = 60;
    if (value.is_object() && !value.empty()) return "an object";
    if (value.is_array() && !value.empty()) return "a list";
    const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    return text.size() > most ? text.substr(0, most) + "..." : text;
}

}  // namespace

json parse_object(const std::string& content) {
    if (content.empty()) throw std::runtime_error("is empty");
    if (content.compare(0, 3, "\xef\xbb\xbf") == 0)
        throw std::runtime_error("begins with a byte order mark, which JSON has none of; save it without");
    try {
        json file = json::parse(content);
        if (!file.is_object()) throw std::runtime_error("must be a JSON object, and is " + shortened(file));
        return file;
    } catch (const json::parse_error& error) {
        throw std::runtime_error("no JSON: cut short or damaged at byte " + std::to_string(error.byte));
    } catch (const json::exception&) {  // a number that nothing holds
        throw std::runtime_error("no JSON: it holds a number that is too large");
    }
}

void refuse_value(const std::string& place, const char* what, const json& value) {
    throw std::runtime_error(place + ": must be " + what + ", not " + shortened(value));
}

const std::string& text_of(const json& value, const std::string& place) {
    if (!value.is_string()) refuse_value(place, "a text", value);
    return value.get_ref<const std::string&>();
}

int32_t integer_of(const json& value, const std::string& place, int32_t most) {
    if (value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(most))
        return value.get<int32_t>();
    refuse_value(place, ("a whole number from 0 to " + std::to_string(most)).c_str(), value);
}

const json& list_of(const json& value, const std::string& place) {
    if (!value.is_array()) refuse_value(place, "a list", value);
    return value;
}

const json& object_of(const json& value, const std::string& place) {
    if (!value.is_object()) refuse_value(place, "an object", value);
    return value;
}

std::string place_of(const std::string& place, const char* key) {
    return place.empty() ? key : place + "." + key;
}

bool has_field(const json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && !found->is_null();
}

const json& field_of(const json& object, const char* key, const std::string& place) {
    const auto found = object.find(key);
    if (found == object.end()) throw std::runtime_error(place_of(place, key) + ": is missing");
    return *found;
}

bool flag_of(const json& object, const char* key, const std::string& place, bool when_absent) {
    const auto found = object.find(key);
    if (found == object.end()) return when_absent;
    if (!found->is_boolean()) refuse_value(place_of(place, key), "true or false", *found);
    return found->get<bool>();
}

}  // namespace train_qat
