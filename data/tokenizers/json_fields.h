// Fields of JSON files, read strictly. What is missing, of another type or out of range throws std::runtime_error that says
// `place`, the field, what it must be and what it holds: nothing is converted, nothing cut.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace train_qat {

// The object that `content`, the bytes of a file, is; std::runtime_error says what is wrong with them.
nlohmann::json parse_object(const std::string& content);

// Throws: `place` must be `what`, not `value`, which is shortened.
[[noreturn]] void refuse_value(const std::string& place, const char* what, const nlohmann::json& value);

// `value` itself, which `place` holds.
const std::string& text_of(const nlohmann::json& value, const std::string& place);
int32_t integer_of(const nlohmann::json& value, const std::string& place, int32_t most);  // from 0 on
const nlohmann::json& list_of(const nlohmann::json& value, const std::string& place);
const nlohmann::json& object_of(const nlohmann::json& value, const std::string& place);

// The field `key` of an object that is called `place` ("" for that of the file).
std::string place_of(const std::string& place, const char* key);
bool has_field(const nlohmann::json& object, const char* key);  // that is not null
const nlohmann::json& field_of(const nlohmann::json& object, const char* key, const std::string& place);
bool flag_of(const nlohmann::json& object, const char* key, const std::string& place, bool when_absent);

}  // namespace train_qat
