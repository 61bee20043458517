// The safetensors file format, written from and read into the memory of a backend.
//
//   8 bytes   length of the header, little endian
//   header    JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}, offsets
//             counted from the end of the header; "__metadata__" holds strings. Padded with spaces to a
//             multiple of 8 bytes.
//   data      the tensors one after another, row-major, little endian, without gaps
//
// Data passes through staging buffers: a device's model is never in host memory as a whole. Tensors may be
// divided among ranks (named_tensor.h): then each rank writes or reads its rows at their place in the one file,
// whose bytes and checksum do not depend on the number of ranks.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "kernels/tensor.h"
#include "model/storage/checksum.h"
#include "model/storage/files.h"
#include "model/storage/named_tensor.h"

namespace train_qat {

inline constexpr int64_t safetensors_staging_bytes = int64_t{16} << 20;

// Collective: writes `tensors` in the given order, which is that of all ranks, to a file that all of them see
// under `path`. The file is new, whole and flushed to the disk, or absent. Throws on all ranks
// std::runtime_error (path, what is wrong: kernels/ranks/agreement.h) if it exists or can't be written, and
// std::logic_error for an empty tensor, a name that is used twice, or ranks whose parts do not fit together.
FileSummary write_safetensors(const std::string& path, Backend& backend, Communicator& communicator,
                              std::span<const NamedTensor> tensors,
                              const std::map<std::string, std::string>& metadata = {});

// Size of that file, to the byte.
int64_t safetensors_bytes(std::span<const NamedTensor> tensors,
                          const std::map<std::string, std::string>& metadata = {});

// The format's name of a dtype.
const char* safetensors_name(DType dtype);

class SafetensorsFile {
  public:
    struct TensorInfo {
        std::string dtype;  // the format's name: F32, BF16, I32, F16, I64, ...
        std::vector<int64_t> shape;
        int64_t offset = 0;  // in the file
        int64_t bytes = 0;
    };

    // Reads and checks the header. Throws std::runtime_error naming file and tensor when the file is
    // truncated, has trailing bytes, or its header is no valid JSON, repeats a name, or has offsets that do
    // not fit dtype and shape, overlap or leave gaps.
    explicit SafetensorsFile(const std::string& path);

    const std::string& path() const { return file_.path(); }
    int64_t bytes() const { return file_.bytes(); }
    const std::vector<std::string>& names() const { return names_; }  // in the order of their data
    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    bool contains(const std::string& name) const { return tensors_.count(name) > 0; }
    const TensorInfo& info(const std::string& name) const;  // throws std::runtime_error if absent

    // Reads these bytes of one tensor's data, from `first` on. std::runtime_error: absent, or the disk's.
    void read(const std::string& name, int64_t first, void* data, int64_t bytes) const;

    // Collective: reads the tensors of the file, which must be exactly these (in any order), and returns the
    // checksum of the file on all ranks. Names, dtypes and shapes are checked before the first destination is
    // written. If any tensor is divided, a rank reads its own rows only and the checksum is put together from
    // those of all ranks; otherwise each rank reads the whole file and returns the checksum of what it has
    // read. An error of one rank is thrown on all (kernels/ranks/agreement.h).
    uint64_t read_all(Backend& backend, Communicator& communicator,
                      std::span<const NamedTensor> destinations) const;

  private:
    void parse_header(const std::string& text);
    void check_layout();
    void check_destination(const NamedTensor& destination) const;
    void check_names(std::span<const NamedTensor> destinations) const;
    uint64_t header_checksum() const;
    uint64_t copy_rows(const TensorInfo& source, const RowRange& rows, std::vector<char>& staging,
                       Backend& backend, void* destination) const;

    InputFile file_;
    int64_t data_offset_ = 0;
    std::vector<std::string> names_;
    std::map<std::string, TensorInfo> tensors_;
    std::map<std::string, std::string> metadata_;
};

}  // namespace train_qat
