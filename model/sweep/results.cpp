#include "model/sweep/results.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <string_view>

#include "model/storage/files.h"

namespace train_qat {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void throw_errno(const std::string& path, const std::string& action) {
    throw_file_error(path, "cannot " + action + ": " + std::strerror(errno));
}

Json optional_number(const std::optional<double>& value) {
    return value && std::isfinite(*value) ? Json(*value) : Json();
}

// A last line without its newline: whole, as editors leave it, or cut off in the middle.
bool is_record(std::string_view line) {
    const Json json = Json::parse(line, nullptr, false);
    return json.is_object() && json.contains("run") && json["run"].is_string();
}

// Makes the file end with a whole line, and returns its size.
int64_t repair_end(int descriptor, const std::string& path) {
    const std::string text = read_text_file(path);
    if (text.empty() || text.back() == '\n') return static_cast<int64_t>(text.size());
    const size_t newline = text.rfind('\n');
    const size_t last_line = newline == std::string::npos ? 0 : newline + 1;
    if (is_record(std::string_view(text).substr(last_line))) {
        write_all(descriptor, path, "\n", 1);
        return static_cast<int64_t>(text.size()) + 1;
    }
    if (::ftruncate(descriptor, static_cast<off_t>(last_line)) != 0)
        throw_errno(path, "cut off its last line");
    return static_cast<int64_t>(last_line);
}

// The same job is the same run, whatever it was called.
std::string key_of(const Json& record) {
    const bool has_job = record.contains("job") && record["job"].is_string();
    return record[has_job ? "job" : "run"].get<std::string>();
}

}  // namespace

void append_result(const std::string& path, const nlohmann::ordered_json& record) {
    const FileDescriptor descriptor(
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666));
    if (descriptor.get() < 0) throw_errno(path, "open");
    int locked;
    do locked = ::flock(descriptor.get(), LOCK_EX);
    while (locked != 0 && errno == EINTR);
    if (locked != 0) throw_errno(path, "lock");
    const int64_t bytes = repair_end(descriptor.get(), path);
    const std::string line = record.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    try {
        write_all(descriptor.get(), path, line.data(), static_cast<int64_t>(line.size()));
        if (::fsync(descriptor.get()) != 0) throw_errno(path, "flush");
    } catch (...) {
        // Truncating needs no space.
        if (::ftruncate(descriptor.get(), bytes) != 0) std::perror(path.c_str());
        throw;
    }
}

std::vector<nlohmann::ordered_json> read_results(const std::string& path) {
    std::vector<Json> records;
    if (!std::filesystem::exists(path)) return records;
    std::map<std::string, size_t> position;
    const std::string text = read_text_file(path);
    int64_t number = 0;
    for (size_t begin = 0; begin < text.size();) {
        const size_t newline = text.find('\n', begin);
        const bool whole = newline != std::string::npos;
        const auto line = std::string_view(text).substr(begin, whole ? newline - begin : std::string::npos);
        begin = whole ? newline + 1 : text.size();
        ++number;
        if (!is_record(line)) {
            if (!whole) break;
            throw_file_error(path, "line " + std::to_string(number) +
                                       " is no JSON object with a text \"run\"; remove the line");
        }
        Json record = Json::parse(line);
        const auto [known, is_new] = position.emplace(key_of(record), records.size());
        if (is_new)
            records.push_back(std::move(record));
        else
            records[known->second] = std::move(record);
    }
    return records;
}

std::optional<double> final_validation_loss(const Plan& plan, const RunResults& results) {
    if (plan.qat_steps > 0) return results.quantized;
    constexpr double unquantized_bits = 16;
    return plan.bits == unquantized_bits ? results.full_precision : results.rounded;
}

nlohmann::ordered_json result_record(const SweepOutcome& o) {
    const auto loss = o.failure ? std::nullopt : final_validation_loss(o.plan, o.results);
    return {{"run", o.run},
            {"job", o.job},
            {"status", o.failure ? "failed" : "done"},
            {"reason", o.failure ? Json(*o.failure) : Json()},
            {"n", o.plan.parameters},
            {"tokens", o.plan.tokens()},
            {"b", o.plan.bits},
            {"qat_frac", o.asked_fraction ? Json(*o.asked_fraction) : Json("auto")},
            {"qat_frac_used", o.plan.qat_fraction},
            {"cooldown", to_string(o.asked_cooldown)},
            {"cooldown_used", to_string(o.plan.cooldown)},
            {"seed", o.seed},
            {"lr", o.plan.learning_rate},
            {"qat_lr", o.plan.qat_learning_rate},
            {"vocabulary", o.vocabulary},
            {"data", o.data},
            {"tokens_per_step", o.plan.tokens_per_step},
            {"fp_tokens", o.plan.fp_tokens()},
            {"qat_tokens", o.plan.qat_tokens()},
            {"tokens_per_parameter_byte", o.plan.tokens_per_parameter_byte},
            {"losses", losses_to_json(o.results)},
            {"validation_loss", optional_number(loss)},
            {"trained_steps", o.trained_steps},
            {"shared_steps", o.shared_steps},
            {"seconds", std::isfinite(o.seconds) ? Json(o.seconds) : Json()},
            {"directory", o.directory}};
}

}  // namespace train_qat
