#include "model/storage/safetensors.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/storage/checksum.h"

namespace train_qat {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor data is copied without swapping bytes");

constexpr int64_t length_bytes = 8;
constexpr uint64_t largest_header = 100'000'000;  // the limit of the format's reference reader

// Bytes per element of the format's dtypes; 0 = no such dtype.
int64_t element_bytes(const std::string& dtype) {
    static const std::map<std::string, int64_t> sizes = {
        {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
        {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
        {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
    const auto found = sizes.find(dtype);
    return found == sizes.end() ? 0 : found->second;
}

std::string describe(const std::string& dtype, const std::vector<int64_t>& shape) {
    return dtype + " " + nlohmann::json(shape).dump();
}

// ---- header of the reader

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

void SafetensorsFile::read(const std::string& name, int64_t first, void* data, int64_t bytes) const {
    const TensorInfo& tensor = info(name);
    if (first < 0 || bytes < 0 || first > tensor.bytes || bytes > tensor.bytes - first)
        throw std::logic_error("SafetensorsFile: bytes beyond tensor " + in_quotes(name));
    file_.read_at(tensor.offset + first, data, bytes);
}

void SafetensorsFile::check_destination(const NamedTensor& destination) const {
    const TensorInfo& found = info(destination.name);
    const std::string dtype = safetensors_name(destination.tensor.dtype);
    const std::vector<int64_t> shape = whole_shape(destination);
    if (found.dtype == dtype && found.shape == shape) return;
    throw_file_error(path(), "tensor " + in_quotes(destination.name) + ": expected " +
                                 describe(dtype, shape) + ", found " + describe(found.dtype, found.shape) +
                                 "; the file belongs to a model of another size or precision");
}

void SafetensorsFile::check_names(std::span<const NamedTensor> destinations) const {
    std::set<std::string> wanted;
    for (const NamedTensor& destination : destinations) {
        wanted.insert(destination.name);
        if (!contains(destination.name)) {
            throw_file_error(path(),
                             "has no tensor " + in_quotes(destination.name) +
                                 ", which this model needs; use the options that the file was made with");
        }
        check_destination(destination);
    }
    for (const auto& name : names_) {
        if (wanted.count(name) > 0) continue;
        throw_file_error(path(),
                         "holds a tensor " + in_quotes(name) +
                             ", which this model does not have; use the options that the file was made with");
    }
}

uint64_t SafetensorsFile::header_checksum() const {
    std::string header(static_cast<size_t>(data_offset_), '\0');
    file_.read_at(0, header.data(), data_offset_);
    return checksum_of(header);
}

// Reads rows of one tensor and returns the sum of their checksums.
uint64_t SafetensorsFile::copy_rows(const TensorInfo& source, const RowRange& rows,
                                    std::vector<char>& staging, Backend& backend, void* destination) const {
    if (rows.bytes() == 0) return 0;
    const int64_t begin = source.offset + rows.offset();
    RowChecksum checksum(begin, rows.row_bytes);
    for (int64_t done = 0; done < rows.bytes();) {
        const int64_t count = std::min(static_cast<int64_t>(staging.size()), rows.bytes() - done);
        file_.read_at(begin + done, staging.data(), count);
        checksum.update(staging.data(), count);
        backend.copy_to_device(static_cast<char*>(destination) + done, staging.data(), count);
        backend.synchronize();  // the staging buffer is used again
        done += count;
    }
    return checksum.value();
}

uint64_t SafetensorsFile::read_all(Backend& backend, Communicator& communicator,
                                   std::span<const NamedTensor> destinations) const {
    check_named_tensors("SafetensorsFile", destinations);
    run_together(communicator, [&] { check_names(destinations); });
    check_division("SafetensorsFile", communicator, destinations);

    const bool divided = any_divided(destinations);
    uint64_t checksum = 0;
    run_together(communicator, [&] {
        std::map<std::string, const NamedTensor*> by_name;
        for (const NamedTensor& named : destinations) by_name[named.name] = &named;
        if (!divided || communicator.rank() == 0) checksum = header_checksum();
        std::vector<char> staging(static_cast<size_t>(std::min(safetensors_staging_bytes, bytes())));
        for (const auto& name : names_) {  // in the order of the file
            const NamedTensor& named = *by_name.at(name);
            const RowRange rows = rows_held(named);
            const uint64_t sum = copy_rows(tensors_.at(name), rows, staging, backend, named.tensor.data);
            if (!divided || rows_answered_for(named, communicator.rank()).count > 0) checksum += sum;
        }
    });
    return divided ? sum_over_ranks(communicator, checksum) : checksum;
}

}  // namespace train_qat
