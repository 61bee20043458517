// The weights of a Hugging Face folder: model.safetensors, or model.safetensors.index.json and the shards that it names,
// with tensors in float32, bfloat16 or float16.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/parameters.h"
#include "model/storage/safetensors.h"

namespace train_qat {

class HuggingFaceWeights {
  public:
    // Opens the files and reads their headers. std::runtime_error of one line that starts with the file: one is missing
    // or damaged, the index and the shards differ, or there are weights of another format only.
    explicit HuggingFaceWeights(const std::string& directory);

    // Of names, dtypes, shapes and samples of every tensor's numbers (evenly spread from the first to the last, up to 16 KiB of each), however they
    // are divided among files: tells models apart without reading all of them.
    uint64_t fingerprint() const;

    // std::runtime_error unless the tensors are those of the model: none is missing, none additional, with these shapes
    // and in a dtype that can be read. Two may be additional: rotary_emb.inv_freq of old files, which follows from the
    // configuration, and of a tied head a copy of the embedding, which load() compares.
    void check(const Parameters& parameters) const;

    // Collective, after check(): sets the masters of the rows that this rank keeps, through a staging buffer, and the
    // matmuls' copies of these rows. float16 and bfloat16 are widened exactly; bfloat16 masters are rounded to nearest.
    // std::runtime_error: a number is not finite, or a tied head differs from the embedding.
    void load(Backend& backend, Communicator& communicator, const Parameters& parameters) const;

  private:
    void open_shards(const std::string& index);
    void add_file(const std::string& path);
    const SafetensorsFile& file_of(const std::string& name) const;
    void check_tensor(const Parameter& parameter) const;
    void load_rows(Backend& backend, const Parameter& parameter, const std::string& copy) const;

    std::string place_;  // the file or index, for errors
    std::deque<SafetensorsFile> files_;
    std::map<std::string, size_t> file_number_;  // of each tensor
};

}  // namespace train_qat
