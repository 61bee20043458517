// manifest.json: what makes a directory a checkpoint.
//
//   {"format": "train_qat checkpoint", "version": 1, "step": 1234, "state": {...},
//    "files": {"model.safetensors": {"bytes": 123, "xxh3_64": "0123456789abcdef"}, ...},
//    "checksum": "...", "written": "2025-01-31T12:00:00Z"}
//
// `state` belongs to the caller. `checksum` is the XXH3 of the compact JSON text, keys sorted, without
// `checksum` and `written`: equal checkpoints have equal checksums, whenever they were written.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/files.h"

namespace train_qat {

struct Manifest {
    int64_t step = 0;
    nlohmann::json state;
    std::map<std::string, FileSummary> files;
};

std::string manifest_path(const std::string& directory);
bool has_manifest(const std::string& directory);

std::string manifest_text(const Manifest& manifest);

// Throws std::runtime_error: no manifest, damaged, of another program, of a newer version.
Manifest read_manifest(const std::string& directory);

// Throws std::runtime_error if one of the manifest's files is missing or has another size.
void check_file_sizes(const std::string& directory, const Manifest& manifest);

// "step_00001234", and back: -1 if `name` is no such name.
std::string checkpoint_name(int64_t step);
int64_t step_of_checkpoint_name(const std::string& name);

}  // namespace train_qat
