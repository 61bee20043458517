#include "data/begin_and_end.h"

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/file_bytes.h"
#include "data/tokenizers/json_fields.h"

namespace train_qat {
namespace {

using nlohmann::json;

// A file beside a tokenizer.json, and what it names.
class FileBeside {
  public:
    FileBeside(const std::filesystem::path& tokenizer, const char* name)
        : path_((tokenizer.parent_path() / name).string()) {
        std::error_code ignored;
        if (!std::filesystem::exists(path_, ignored)) return;
        const std::string content =
            read_file(path_, "a tokenizer's begin and end tokens", "mend or remove it");
        try {
            content_ = parse_object(content);
        } catch (const std::exception& error) {
            throw std::runtime_error(path_ + ": " + error.what());
        }
    }

    bool contains(const char* key) const { return content_.contains(key); }

    // Appends the token that the file names by its text, if it does.
    void add_text(const char* key, std::vector<NamedToken>& tokens) const {
        if (!has_field(content_, key)) return;
        const json& value = content_.at(key);
        const json& text = value.is_object() && value.contains("content") ? value.at("content") : value;
        if (!text.is_string())
            refuse_value(place(key), "a text, an object with it as content, or null", value);
        if (text != "") tokens.push_back({text.get<std::string>(), -1});
    }

    // The same by its id.
    void add_id(const char* key, std::vector<NamedToken>& tokens) const {
        if (!has_field(content_, key)) return;
        const json& value = content_.at(key);
        if (value.is_array() && value.empty()) return;
        const json& id = value.is_array() ? value.front() : value;
        if (!id.is_number_integer()) refuse_value(place(key), "a token's id, a list of ids, or null", value);
        if (id >= 0 && id <= INT32_MAX) tokens.push_back({"", id.get<int32_t>()});
    }

  private:
    std::string place(const char* key) const { return path_ + ": " + key; }

    std::string path_;
    json content_ = json::object();
};

}  // namespace

BeginAndEnd begin_and_end_beside(const std::string& path) {
    const FileBeside settings(path, "tokenizer_config.json"), map(path, "special_tokens_map.json");
    const FileBeside model(path, "config.json"), generation(path, "generation_config.json");
    const bool map_first = !settings.contains("added_tokens_decoder");
    BeginAndEnd found;
    for (const FileBeside* file : {map_first ? &map : &settings, map_first ? &settings : &map}) {
        file->add_text("bos_token", found.begin);
        file->add_text("eos_token", found.end);
    }
    for (const FileBeside* file : {&model, &generation}) {
        file->add_id("bos_token_id", found.begin);
        file->add_id("eos_token_id", found.end);
    }
    return found;
}

}  // namespace train_qat
