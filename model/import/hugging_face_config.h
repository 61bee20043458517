// config.json of a Hugging Face folder: models of the Llama architecture, and Qwen2 and Qwen3, as transformers has them.
#pragma once

#include <cstdint>
#include <string>

#include "model/config.h"

namespace train_qat {

// Whether it is a folder of a Hugging Face model: it holds config.json, and is no checkpoint of a run.
bool is_hugging_face_folder(const std::string& directory);

// The model that directory/config.json describes, for sequences of this many tokens (-seq_len). Fields that are known not
// to change what a model computes are passed over; any other that is not understood is refused, as are values that this
// program cannot train. std::runtime_error of one line: the file, the field and its value.
ModelConfig read_hugging_face_config(const std::string& directory, int64_t sequence_length);

}  // namespace train_qat
