#include "model/storage/manifest.h"

#include <charconv>
#include <cstdio>
#include <ctime>
#include <filesystem>

namespace train_qat {
namespace {

constexpr const char* format = "train_qat checkpoint";
constexpr int64_t version = 2;
constexpr const char* checksum_key = "xxh3_64_rows";
constexpr const char* use_another = "; use another checkpoint";

// Text that isn't UTF-8 (a path, say) must not make a save fail: such bytes are replaced.
std::string compact_text(const nlohmann::json& value) {
    return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string manifest_checksum(nlohmann::json manifest) {
    manifest.erase("checksum");
    manifest.erase("written");
    return checksum_text(checksum_of(compact_text(manifest)));
}

bool parse_checksum(const std::string& text, uint64_t& checksum) {
    const auto result = std::from_chars(text.data(), text.data() + text.size(), checksum, 16);
    return result.ec == std::errc() && result.ptr == text.data() + text.size() && text.size() == 16;
}

void check_format(const std::string& path, const nlohmann::json& manifest) {
    const auto text = manifest.find("format");
    if (text == manifest.end() || *text != format) {
        throw_file_error(
            path, std::string("not a checkpoint of train_qat (\"format\" is not ") + in_quotes(format) + ")");
    }
    const auto number = manifest.find("version");
    if (number == manifest.end() || !number->is_number_integer()) throw_file_error(path, "has no version");
    if (*number > version) {
        throw_file_error(path, "has version " + number->dump() + ", newer than this program's " +
                                   std::to_string(version) + "; use a newer train_qat");
    }
    if (*number == 1) {
        throw_file_error(path, "has version 1, older than this program's " + std::to_string(version) +
                                   "; use the train_qat that wrote it");
    }
    if (*number < version) throw_file_error(path, "has the unknown version " + number->dump());
}

void check_checksum(const std::string& path, const nlohmann::json& manifest) {
    const auto found = manifest.find("checksum");
    if (found == manifest.end() || *found != manifest_checksum(manifest))
        throw_file_error(path, std::string("damaged: its checksum does not match") + use_another);
}

}  // namespace

std::string utc_time() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    ::gmtime_r(&now, &parts);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return text;
}

std::string manifest_path(const std::string& directory) {
    return directory + "/manifest.json";
}

bool has_manifest(const std::string& directory) {
    std::error_code ignored;
    return std::filesystem::is_regular_file(manifest_path(directory), ignored);
}

std::string manifest_text(const Manifest& manifest) {
    nlohmann::json files = nlohmann::json::object();
    for (const auto& [name, file] : manifest.files)
        files[name] = {{"bytes", file.bytes}, {checksum_key, checksum_text(file.checksum)}};
    nlohmann::json value = {{"format", format},
                            {"version", version},
                            {"step", manifest.step},
                            {"state", manifest.state},
                            {"files", files}};
    // Through its text, because that is what a reader gets: NaN becomes null, bad UTF-8 is replaced.
    value = nlohmann::json::parse(compact_text(value));
    value["checksum"] = manifest_checksum(value);
    value["written"] = utc_time();
    return value.dump(2) + "\n";
}

Manifest read_manifest(const std::string& directory) {
    const std::string path = manifest_path(directory);
    if (!has_manifest(directory)) throw_file_error(directory, "not a checkpoint: it has no manifest.json");
    nlohmann::json value;
    try {
        value = nlohmann::json::parse(read_text_file(path));
    } catch (const nlohmann::json::exception& error) {
        throw_file_error(path, std::string("damaged: ") + error.what() + use_another);
    }
    if (!value.is_object()) throw_file_error(path, std::string("damaged: not a JSON object") + use_another);
    check_format(path, value);
    check_checksum(path, value);
    try {
        Manifest manifest{value.at("step").get<int64_t>(), value.at("state"), {}, value.at("checksum")};
        for (const auto& [name, file] : value.at("files").items()) {
            FileSummary& summary = manifest.files[name];
            summary.bytes = file.at("bytes").get<int64_t>();
            if (!parse_checksum(file.at(checksum_key).get<std::string>(), summary.checksum))
                throw_file_error(path,
                                 std::string("damaged: no checksum of ") + in_quotes(name) + use_another);
        }
        return manifest;
    } catch (const nlohmann::json::exception& error) {
        throw_file_error(path, std::string("damaged: ") + error.what() + use_another);
    }
}

void check_file_sizes(const std::string& directory, const Manifest& manifest) {
    for (const auto& [name, summary] : manifest.files) {
        const std::string path = directory + "/" + name;
        std::error_code error;
        const auto bytes = std::filesystem::file_size(path, error);
        if (error) throw_file_error(path, "cannot read: " + error.message() + use_another);
        if (static_cast<int64_t>(bytes) == summary.bytes) continue;
        throw_file_error(path, (static_cast<int64_t>(bytes) < summary.bytes ? "truncated: " : "damaged: ") +
                                   std::to_string(bytes) + " bytes, the manifest says " +
                                   std::to_string(summary.bytes) + use_another);
    }
}

std::string checkpoint_name(int64_t step) {
    char text[32];
    std::snprintf(text, sizeof text, "step_%08lld", static_cast<long long>(step));
    return text;
}

int64_t step_of_checkpoint_name(const std::string& name) {
    constexpr size_t prefix = 5;
    int64_t step = -1;
    if (name.size() <= prefix) return -1;
    std::from_chars(name.data() + prefix, name.data() + name.size(), step);
    return step >= 0 && checkpoint_name(step) == name ? step : -1;
}

}  // namespace train_qat
