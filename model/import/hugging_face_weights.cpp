#include "model/import/hugging_face_weights.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "kernels/ranks/agreement.h"
#include "model/import/number_formats.h"
#include "model/storage/checksum.h"
#include "model/storage/files.h"

namespace train_qat {

namespace {

constexpr const char* embedding_name = "model.embed_tokens.weight";
constexpr const char* head_name = "lm_head.weight";

bool follows_from_config(const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq");
}

std::string described(const std::vector<int64_t>& shape) {
    return nlohmann::json(shape).dump();
}

// {tensor: file} of an index.
std::map<std::string, std::string> weight_map_of(const std::string& index) {
    const nlohmann::json json = nlohmann::json::parse(read_text_file(index), nullptr, false);
    if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
        throw_file_error(index, "is no index of weights (no \"weight_map\"); copy it again");
    std::map<std::string, std::string> files;
    for (const auto& [name, file] : json["weight_map"].items()) {
        // Files of the same folder only.
        if (!file.is_string() || file.get<std::string>().empty() ||
            std::filesystem::path(file.get<std::string>()).filename() != file.get<std::string>())
            throw_file_error(index, "tensor " + in_quotes(name) + " is in no file of this folder");
        files[name] = file.get<std::string>();
    }
    if (files.empty()) throw_file_error(index, "names no tensors");
    return files;
}

// A part of one tensor on its way to a device.
struct Staging {
    static constexpr int64_t elements = int64_t{1} << 20;
    explicit Staging(int64_t most)
        : bytes(static_cast<size_t>(std::min(elements, most)) * sizeof(float)),
          values(static_cast<size_t>(std::min(elements, most))) {}
    std::vector<char> bytes;
    std::vector<float> values;
};

// `count` elements from `first` on, as float32. std::runtime_error unless they are finite.
const float* read_values(const SafetensorsFile& file, const std::string& name, int64_t first, int64_t count,
                         Staging& staging) {
    const SafetensorsFile::TensorInfo& info = file.info(name);
    const int64_t size = info.dtype == "F32" ? 4 : 2;
    file.read(name, first * size, staging.bytes.data(), count * size);
    widen(info.dtype, staging.bytes.data(), count, staging.values.data());
    for (int64_t i = 0; i < count; ++i)
        if (!std::isfinite(staging.values[i]))
            throw_file_error(file.path(), "tensor " + in_quotes(name) + " holds " +
                                              (std::isnan(staging.values[i]) ? "NaN" : "an infinite number") +
                                              " (element " + std::to_string(first + i) +
                                              "); these weights cannot be trained");
    return staging.values.data();
}

}  // namespace

HuggingFaceWeights::HuggingFaceWeights(const std::string& directory) {
    const std::filesystem::path folder(directory);
    const std::filesystem::path single = folder / "model.safetensors";
    const std::filesystem::path index = folder / "model.safetensors.index.json";
    if (std::filesystem::exists(single)) {
        place_ = single.string();
        add_file(place_);
    } else if (std::filesystem::exists(index)) {
        open_shards(index.string());
    } else {
        throw_file_error(directory,
                         "holds neither model.safetensors nor model.safetensors.index.json; weights of other "
                         "formats become such by save_pretrained of transformers");
    }
}

void HuggingFaceWeights::open_shards(const std::string& index) {
    place_ = index;
    const std::map<std::string, std::string> files = weight_map_of(index);
    std::set<std::string> shards;
    for (const auto& [name, file] : files) shards.insert(file);
    for (const std::string& shard : shards)
        add_file((std::filesystem::path(index).parent_path() / shard).string());
    for (const auto& [name, file] : files)
        if (file_number_.count(name) == 0 || std::filesystem::path(file_of(name).path()).filename() != file)
            throw_file_error(index, "tensor " + in_quotes(name) + " is not in " + file + "; copy both again");
    for (const auto& [name, number] : file_number_)
        if (files.count(name) == 0)
            throw_file_error(index, "does not name tensor " + in_quotes(name) + " of " +
                                        files_[number].path() + "; copy both again");
}

void HuggingFaceWeights::add_file(const std::string& path) {
    files_.emplace_back(path);
    for (const std::string& name : files_.back().names())
        if (!file_number_.emplace(name, files_.size() - 1).second)
            throw_file_error(path, "tensor " + in_quotes(name) + " is in " + file_of(name).path() + " too");
}

const SafetensorsFile& HuggingFaceWeights::file_of(const std::string& name) const {
    const auto found = file_number_.find(name);
    if (found == file_number_.end())
        throw_file_error(place_,
                         "has no tensor " + in_quotes(name) + ", which a model of this config.json needs");
    return files_[found->second];
}

uint64_t HuggingFaceWeights::fingerprint() const {
    constexpr int64_t samples = 4, sample_bytes = 4096;
    Checksum checksum;
    std::vector<char> buffer(sample_bytes);
    for (const auto& [name, number] : file_number_) {
        if (follows_from_config(name)) continue;
        const SafetensorsFile& file = files_[number];
        const SafetensorsFile::TensorInfo& info = file.info(name);
        const std::string text = name + " " + info.dtype + " " + described(info.shape) + "\n";
        checksum.update(text.data(), static_cast<int64_t>(text.size()));
        const int64_t last = std::max<int64_t>(0, info.bytes - sample_bytes);
        for (int64_t i = 0; i < samples; ++i) {
            const int64_t first = last * i / (samples - 1);  // the last bytes too
            const int64_t count = std::min(sample_bytes, info.bytes - first);
            file.read(name, first, buffer.data(), count);
            checksum.update(buffer.data(), count);
        }
    }
    return checksum.value();
}

void HuggingFaceWeights::check(const Parameters& parameters) const {
    std::set<std::string> wanted;
    for (const Parameter& parameter : parameters.all()) {
        wanted.insert(parameter.name);
        check_tensor(parameter);
    }
    for (const auto& [name, number] : file_number_) {
        if (wanted.count(name) > 0 || follows_from_config(name)) continue;
        const SafetensorsFile& file = files_[number];
        if (name == head_name &&
            file.info(name).shape == file_of(embedding_name).info(embedding_name).shape &&
            is_readable(file.info(name).dtype))
            continue;
        throw_file_error(file.path(), "holds a tensor " + in_quotes(name) +
                                          ", which a model of this config.json does not have");
    }
}

void HuggingFaceWeights::check_tensor(const Parameter& parameter) const {
    const SafetensorsFile& file = file_of(parameter.name);
    const SafetensorsFile::TensorInfo& info = file.info(parameter.name);
    const std::string subject = "tensor " + in_quotes(parameter.name);
    const ParameterRows& rows = parameter.whole;
    std::vector<int64_t> shape{rows.rows, rows.columns};
    if (parameter.is_vector) shape.erase(shape.begin());
    if (info.shape != shape)
        throw_file_error(file.path(), subject + " has the shape " + described(info.shape) +
                                          ", a model of this config.json needs " + described(shape));
    if (!is_readable(info.dtype))
        throw_file_error(file.path(),
                         subject + " has the dtype " + info.dtype + "; supported are F32, BF16 and F16");
}

void HuggingFaceWeights::load(Backend& backend, Communicator& communicator,
                              const Parameters& parameters) const {
    run_together(communicator, [&] {
        const auto is_head = [](const Parameter& parameter) { return parameter.name == head_name; };
        const std::vector<Parameter>& all = parameters.all();
        const bool copy_of_head =
            file_number_.count(head_name) > 0 && std::none_of(all.begin(), all.end(), is_head);
        for (const Parameter& parameter : all)
            load_rows(backend, parameter, copy_of_head && parameter.name == embedding_name ? head_name : "");
        parameters.quantize(backend);
    });
}

// copy: a tensor that must hold the same numbers; "": none.
void HuggingFaceWeights::load_rows(Backend& backend, const Parameter& parameter,
                                   const std::string& copy) const {
    // Every process reads a vector, whoever keeps it.
    const ParameterRows& rows = parameter.is_vector ? parameter.whole : parameter.rows;
    const SafetensorsFile& file = file_of(parameter.name);
    Staging staging(rows.elements()), of_copy(copy.empty() ? 0 : rows.elements());
    for (int64_t done = 0; done < rows.elements(); done += Staging::elements) {
        const int64_t first = rows.first_element + done;
        const int64_t count = std::min(Staging::elements, rows.elements() - done);
        const float* values = read_values(file, parameter.name, first, count, staging);
        if (!copy.empty()) {
            const float* others = read_values(file_of(copy), copy, first, count, of_copy);
            if (!std::equal(values, values + count, others))
                throw_file_error(file_of(copy).path(),
                                 "tensor " + in_quotes(copy) + " differs from " + in_quotes(parameter.name) +
                                     ", but config.json ties them (tie_word_embeddings)");
        }
        set_masters(backend, rows, done, values, count);
    }
}

}  // namespace train_qat
