// The fields of a config.json: read one by one, so that those that nobody has read are known.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace train_qat {

class ConfigFields {
  public:
    // The object of a file, or one inside it with the name of its field: both for errors. std::runtime_error if it is no
    // object.
    ConfigFields(std::string path, std::string field, nlohmann::json object);
    // Reads the file.
    explicit ConfigFields(const std::string& path);

    const std::string& path() const { return path_; }

    // Each marks the field as read, and throws std::runtime_error (file, field, value) unless it is of the kind. A null
    // is as good as absent, as in transformers.
    const nlohmann::json& value(const char* name);
    int64_t size(const char* name, int64_t most = 1'000'000);  // a whole number from 1
    std::optional<int64_t> optional_size(const char* name, int64_t most = 1'000'000);
    double positive(const char* name);  // a finite number above 0
    std::optional<double> optional_positive(const char* name);
    bool flag(const char* name, bool otherwise);
    std::string text(const char* name);
    std::vector<nlohmann::json> list(const char* name);  // empty when it is absent

    // Refuses a field that has another value than this one. `otherwise`: what is supported, for the message.
    void require(const char* name, const nlohmann::json& only, const std::string& supported);

    // Refuses fields that nobody has read and that are not among these names.
    void refuse_others(const std::set<std::string_view>& harmless) const;

    [[noreturn]] void fail(const std::string& name, const std::string& message) const;
    // "its NAME is VALUE: MESSAGE"
    [[noreturn]] void refuse(const char* name, const std::string& message) const;

  private:
    std::string path_, field_;
    nlohmann::json object_;
    std::set<std::string> read_;
};

}  // namespace train_qat
