// -export: scripts/export.py, run at the end of a run, for llama.cpp, transformers and vLLM. It is found beside the program,
// and needs a Python with a few packages; whether it has them and the format can hold the model shows before training.
#pragma once

#include <nlohmann/json.hpp>
#include <ostream>

#include "model/job/options.h"

namespace train_qat {

// For one rank, before training: whether all formats of options.exports can be written. settings: the run's, as its checkpoints
// have them. std::runtime_error that begins with -export.
void check_exports(const Options& options, const nlohmann::ordered_json& settings);

// For one rank, after training: the latest checkpoint in all formats, in directories of their names in that of the run, with
// a line to `console` for each. std::runtime_error as above; checkpoints stay whatever happens. False when it is
// asked to stop meanwhile: an unfinished export is removed.
bool write_exports(const Options& options, std::ostream& console);

}  // namespace train_qat
