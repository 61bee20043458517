// manifest.json: what makes a directory a checkpoint.
//
//   {"format": "train_qat checkpoint", "version": 2, "step": 1234, "state": {...},
//    "files": {"model.safetensors": {"bytes": 123, "xxh3_64_rows": "0123456789abcdef"}, ...},
//    "checksum": "...", "written": "2025-01-31T12:00:00Z"}
//
// `state` belongs to the caller. `xxh3_64_rows` is a sum over the rows of all tensors, so that many ranks can
// form it together and it does not depend on their number (model/storage/row_checksum.h). In Python:
//
//   data = open("model.safetensors", "rb").read()
//   start = 8 + int.from_bytes(data[:8], "little")
//   pieces = [(0, start)]  # offset in the file, bytes: everything before the data
//   for name, tensor in json.loads(data[8:start]).items():
//       if name != "__metadata__":
//           begin, end = tensor["data_offsets"]
//           rows = tensor["shape"][0] if len(tensor["shape"]) > 1 else 1  # a vector is one row
//           if end > begin:
//               size = (end - begin) // rows
//               pieces += [(start + offset, size) for offset in range(begin, end, size)]
//   digest = lambda offset, size: xxhash.xxh3_64_intdigest(data[offset : offset + size], seed=offset)
//   checksum = "%016x" % (sum(digest(*piece) for piece in pieces) % 2**64)
//
// `checksum` is the XXH3 of the compact JSON text, keys sorted, without `checksum` and `written`: equal
// checkpoints have equal checksums, whenever they were written.
//
// Version 1 had the XXH3 of each whole file.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/storage/files.h"
#include "model/storage/row_checksum.h"

namespace train_qat {

struct Manifest {
    int64_t step = 0;
    nlohmann::json state;
    std::map<std::string, FileSummary> files;
    std::string checksum = "";  // of the manifest itself; set by read_manifest
};

std::string manifest_path(const std::string& directory);
bool has_manifest(const std::string& directory);

std::string manifest_text(const Manifest& manifest);

// Throws std::runtime_error: no manifest, damaged, of another program, of another version.
Manifest read_manifest(const std::string& directory);

// Throws std::runtime_error if one of the manifest's files is missing or has another size.
void check_file_sizes(const std::string& directory, const Manifest& manifest);

// Now: "2025-01-31T12:00:00Z".
std::string utc_time();

// "step_00001234", and back: -1 if `name` is no such name.
std::string checkpoint_name(int64_t step);
int64_t step_of_checkpoint_name(const std::string& name);

}  // namespace train_qat
