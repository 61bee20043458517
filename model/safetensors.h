// The safetensors file format, written from and read into the memory of a backend.
//
//   8 bytes   length of the header, little endian
//   header    JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}, offsets
//   counted
//             from the end of the header; "__metadata__" holds strings. Padded with spaces to a multiple of 8
//             bytes.
//   data      the tensors one after another, row-major, little endian, without gaps
//
// Data passes through a staging buffer of 16 MiB, so a model is never in host memory as a whole.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/tensor.h"
#include "model/files.h"

namespace train_qat {

struct NamedTensor {
    std::string name;
    Tensor tensor;
};

// Writes `tensors` in the given order. The file is new, whole and flushed to the disk, or absent. Throws
// std::runtime_error (path, what is wrong) if it exists or can't be written, std::logic_error for an empty
// tensor or a name that is used twice.
FileSummary write_safetensors(const std::string& path, Backend& backend, std::span<const NamedTensor> tensors,
                              const std::map<std::string, std::string>& metadata = {});

// Size of that file, to the byte.
int64_t safetensors_bytes(std::span<const NamedTensor> tensors,
                          const std::map<std::string, std::string>& metadata = {});

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

    // Reads one tensor. Throws std::runtime_error if it is absent or its dtype or shape differ from
    // `destination`.
    void read(const std::string& name, Backend& backend, const Tensor& destination) const;

    // Reads the whole file, which must hold exactly these tensors (in any order), and returns the checksum of
    // the file. Names, dtypes and shapes are checked before the first destination is written.
    uint64_t read_all(Backend& backend, std::span<const NamedTensor> destinations) const;

    // Reads the file again and throws std::runtime_error if its checksum is another one.
    void verify_checksum(uint64_t expected) const;

  private:
    void parse_header(const std::string& text);
    void check_layout();
    void check_destination(const std::string& name, const Tensor& destination) const;
    void check_names(std::span<const NamedTensor> destinations) const;

    InputFile file_;
    int64_t data_offset_ = 0;
    std::vector<std::string> names_;
    std::map<std::string, TensorInfo> tensors_;
    std::map<std::string, std::string> metadata_;
};

}  // namespace train_qat
