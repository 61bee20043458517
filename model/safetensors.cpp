#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

namespace train_qat {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor data is copied without swapping bytes");

constexpr int64_t staging_bytes = int64_t{16} << 20;
constexpr int64_t length_bytes = 8;
constexpr uint64_t largest_header = 100'000'000;  // the limit of the format's reference reader

const char* format_name(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return "F32";
        case DType::bfloat16:
            return "BF16";
        case DType::int32:
            return "I32";
    }
    throw std::logic_error("safetensors: unknown dtype");
}

// Bytes per element of the format's dtypes; 0 = no such dtype.
int64_t element_bytes(const std::string& dtype) {
    static const std::map<std::string, int64_t> sizes = {
        {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
        {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
        {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
    const auto found = sizes.find(dtype);
    return found == sizes.end() ? 0 : found->second;
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
    return {tensor.shape, tensor.shape + tensor.rank};
}

std::string describe(const std::string& dtype, const std::vector<int64_t>& shape) {
    return dtype + " " + nlohmann::json(shape).dump();
}

// ---- writer
// -----------------------------------------------------------------------------------------------------

std::string build_header(std::span<const NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata) {
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::set<std::string> names = {"__metadata__"};
    int64_t offset = 0;
    for (const auto& [name, tensor] : tensors) {
        if (!names.insert(name).second) throw std::logic_error("write_safetensors: name used twice: " + name);
        if (tensor.empty() || tensor.elements() <= 0)
            throw std::logic_error("write_safetensors: empty tensor " + name);
        const int64_t end = offset + tensor.bytes();
        header[name] = {{"dtype", format_name(tensor.dtype)},
                        {"shape", shape_of(tensor)},
                        {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
}

int64_t data_bytes(std::span<const NamedTensor> tensors) {
    int64_t sum = 0;
    for (const auto& named : tensors) sum += named.tensor.bytes();
    return sum;
}

// ---- header of the reader
// ---------------------------------------------------------------------------------------

nlohmann::json parse_json(const std::string& path, const std::string& text) {
    // The parser keeps the last of several equal keys; two tensors of one name must not pass.
    std::set<std::string> names;
    std::string repeated;
    const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
        const bool name = depth == 1 && event == nlohmann::json::parse_event_t::key;
        if (name && !names.insert(parsed.get<std::string>()).second) repeated = parsed.get<std::string>();
        return true;
    };
    nlohmann::json header;
    try {
        header = nlohmann::json::parse(text, watch);
    } catch (const nlohmann::json::exception& error) {
        throw_file_error(
            path, std::string("damaged or no safetensors file, its header is no JSON: ") + error.what());
    }
    if (!header.is_object()) throw_file_error(path, "no safetensors file: its header is not a JSON object");
    if (!repeated.empty())
        throw_file_error(path, "tensor " + in_quotes(repeated) + " occurs twice in the header");
    return header;
}

// A non-negative integer, or -1.
int64_t as_size(const nlohmann::json& value) {
    if (!value.is_number_unsigned()) return -1;
    return static_cast<int64_t>(std::min<uint64_t>(value.get<uint64_t>(), INT64_MAX));
}

bool is_array_of_sizes(const nlohmann::json& entry, const char* key) {
    const auto found = entry.find(key);
    if (found == entry.end() || !found->is_array()) return false;
    return std::all_of(found->begin(), found->end(), [](const auto& value) { return as_size(value) >= 0; });
}

// Offset is relative to the data here.
SafetensorsFile::TensorInfo parse_tensor(const std::string& where, const std::string& name,
                                         const nlohmann::json& entry) {
    const auto fail = [&](const std::string& message) {
        throw_file_error(where, "tensor " + in_quotes(name) + " " + message + "; the file is damaged");
    };
    if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string()) fail("has no dtype");
    if (!is_array_of_sizes(entry, "shape")) fail("has no valid shape");
    if (!is_array_of_sizes(entry, "data_offsets") || entry["data_offsets"].size() != 2)
        fail("has no valid data_offsets");

    SafetensorsFile::TensorInfo info;
    info.dtype = entry["dtype"].get<std::string>();
    int64_t bytes = element_bytes(info.dtype);
    if (bytes == 0) fail("has the unknown dtype " + in_quotes(info.dtype));
    for (const auto& extent : entry["shape"]) {
        info.shape.push_back(as_size(extent));
        if (__builtin_mul_overflow(bytes, info.shape.back(), &bytes)) fail("has a shape that is too large");
    }
    info.offset = as_size(entry["data_offsets"][0]);
    info.bytes = bytes;
    const int64_t end = as_size(entry["data_offsets"][1]);
    if (end < info.offset || end - info.offset != bytes) {
        fail("has " + std::to_string(bytes) + " bytes by its dtype and shape (" +
             describe(info.dtype, info.shape) + "), but data_offsets " + entry["data_offsets"].dump());
    }
    return info;
}

}  // namespace

int64_t safetensors_bytes(std::span<const NamedTensor> tensors,
                          const std::map<std::string, std::string>& metadata) {
    return length_bytes + static_cast<int64_t>(build_header(tensors, metadata).size()) + data_bytes(tensors);
}

FileSummary write_safetensors(const std::string& path, Backend& backend, std::span<const NamedTensor> tensors,
                              const std::map<std::string, std::string>& metadata) {
    const std::string header = build_header(tensors, metadata);
    const uint64_t header_bytes = header.size();
    OutputFile file(path, length_bytes + static_cast<int64_t>(header_bytes) + data_bytes(tensors));
    file.write(&header_bytes, length_bytes);
    file.write(header.data(), static_cast<int64_t>(header_bytes));
    std::vector<char> staging(static_cast<size_t>(std::min(staging_bytes, data_bytes(tensors))));
    for (const auto& named : tensors) {
        const int64_t bytes = named.tensor.bytes();
        for (int64_t done = 0; done < bytes;) {
            const int64_t count = std::min(staging_bytes, bytes - done);
            backend.copy_to_host(staging.data(), static_cast<const char*>(named.tensor.data) + done, count);
            file.write(staging.data(), count);
            done += count;
        }
    }
    return file.finish();
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
    if (file_.bytes() < length_bytes + 2) {
        throw_file_error(path, "too short for a safetensors file (" + std::to_string(file_.bytes()) +
                                   " bytes); copy or write it again");
    }
    uint64_t header_bytes = 0;
    file_.read_at(0, &header_bytes, length_bytes);
    if (header_bytes > static_cast<uint64_t>(file_.bytes() - length_bytes) || header_bytes > largest_header) {
        throw_file_error(path, "truncated or no safetensors file: its header declares " +
                                   std::to_string(header_bytes) + " bytes, the file has " +
                                   std::to_string(file_.bytes()));
    }
    std::string text(header_bytes, '\0');
    file_.read_at(length_bytes, text.data(), static_cast<int64_t>(header_bytes));
    data_offset_ = length_bytes + static_cast<int64_t>(header_bytes);
    parse_header(text);
    check_layout();
}

void SafetensorsFile::parse_header(const std::string& text) {
    const nlohmann::json header = parse_json(path(), text);
    for (const auto& [name, entry] : header.items()) {
        if (name != "__metadata__") {
            tensors_[name] = parse_tensor(path(), name, entry);
            names_.push_back(name);
            continue;
        }
        if (!entry.is_object()) throw_file_error(path(), "its __metadata__ is not a JSON object");
        for (const auto& [key, value] : entry.items()) {
            if (!value.is_string())
                throw_file_error(path(), "its __metadata__ " + in_quotes(key) + " is not a string");
            metadata_[key] = value.get<std::string>();
        }
    }
}

// The data must be covered exactly: no overlap, no gap, nothing before or after.
void SafetensorsFile::check_layout() {
    const auto place = [&](const std::string& name) {
        const TensorInfo& info = tensors_.at(name);
        return std::pair(info.offset, info.bytes);
    };
    std::sort(names_.begin(), names_.end(),
              [&](const auto& left, const auto& right) { return place(left) < place(right); });
    const int64_t available = file_.bytes() - data_offset_;
    int64_t end = 0;
    for (const auto& name : names_) {
        TensorInfo& info = tensors_.at(name);
        const std::string subject = "tensor " + in_quotes(name);
        if (info.bytes > available - std::min(available, info.offset)) {
            throw_file_error(path(), "truncated: " + subject + " ends at byte " +
                                         std::to_string(static_cast<uint64_t>(info.offset) + info.bytes) +
                                         " of the data, which has " + std::to_string(available) +
                                         "; copy it again or use another file");
        }
        if (info.offset != end) {
            throw_file_error(path(), subject + " begins at byte " + std::to_string(info.offset) +
                                         " of the data, the tensor before it ends at " + std::to_string(end) +
                                         " (" + (info.offset < end ? "overlap" : "gap") +
                                         "); the file is damaged");
        }
        end += info.bytes;
        info.offset += data_offset_;
    }
    if (end != available) {
        throw_file_error(
            path(), std::to_string(available - end) + " bytes follow the last tensor; the file is damaged");
    }
}

const SafetensorsFile::TensorInfo& SafetensorsFile::info(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw_file_error(path(), "has no tensor " + in_quotes(name));
    return found->second;
}

void SafetensorsFile::check_destination(const std::string& name, const Tensor& destination) const {
    const TensorInfo& found = info(name);
    if (found.dtype == format_name(destination.dtype) && found.shape == shape_of(destination)) return;
    throw_file_error(path(), "tensor " + in_quotes(name) + ": expected " +
                                 describe(format_name(destination.dtype), shape_of(destination)) +
                                 ", found " + describe(found.dtype, found.shape) +
                                 "; the file belongs to a model of another size or precision");
}

void SafetensorsFile::read(const std::string& name, Backend& backend, const Tensor& destination) const {
    check_destination(name, destination);
    const TensorInfo& source = tensors_.at(name);
    std::vector<char> staging(static_cast<size_t>(std::min(staging_bytes, source.bytes)));
    for (int64_t done = 0; done < source.bytes;) {
        const int64_t count = std::min(staging_bytes, source.bytes - done);
        file_.read_at(source.offset + done, staging.data(), count);
        backend.copy_to_device(static_cast<char*>(destination.data) + done, staging.data(), count);
        backend.synchronize();  // the staging buffer is used again
        done += count;
    }
}

void SafetensorsFile::check_names(std::span<const NamedTensor> destinations) const {
    std::set<std::string> wanted;
    for (const auto& [name, tensor] : destinations) {
        if (!wanted.insert(name).second) throw std::logic_error("SafetensorsFile: name used twice: " + name);
        if (!contains(name)) {
            throw_file_error(path(),
                             "has no tensor " + in_quotes(name) +
                                 ", which this model needs; use the options that the file was made with");
        }
        check_destination(name, tensor);
    }
    for (const auto& name : names_) {
        if (wanted.count(name) > 0) continue;
        throw_file_error(path(),
                         "holds a tensor " + in_quotes(name) +
                             ", which this model does not have; use the options that the file was made with");
    }
}

uint64_t SafetensorsFile::read_all(Backend& backend, std::span<const NamedTensor> destinations) const {
    check_names(destinations);
    std::map<std::string, const Tensor*> by_name;
    for (const auto& [name, tensor] : destinations) by_name[name] = &tensor;

    // Data follows the header without gaps, so going through the tensors in their order passes over every
    // byte once.
    Checksum checksum;
    std::vector<char> staging(
        static_cast<size_t>(std::max(data_offset_, std::min(staging_bytes, file_.bytes()))));
    file_.read_at(0, staging.data(), data_offset_);
    checksum.update(staging.data(), data_offset_);
    for (const auto& name : names_) {
        const TensorInfo& source = tensors_.at(name);
        for (int64_t done = 0; done < source.bytes;) {
            const int64_t count = std::min(staging_bytes, source.bytes - done);
            file_.read_at(source.offset + done, staging.data(), count);
            checksum.update(staging.data(), count);
            backend.copy_to_device(static_cast<char*>(by_name.at(name)->data) + done, staging.data(), count);
            backend.synchronize();  // the staging buffer is used again
            done += count;
        }
    }
    return checksum.value();
}

void SafetensorsFile::verify_checksum(uint64_t expected) const {
    const uint64_t found = file_checksum(path());
    if (found == expected) return;
    throw_file_error(path(), "damaged: its checksum is " + checksum_text(found) + ", expected " +
                                 checksum_text(expected) + "; copy it again or use another file");
}

}  // namespace train_qat
