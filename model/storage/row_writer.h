// Rows of tensors on their way from a device to their place in a file, by several threads.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ranks/task_thread.h"
#include "model/storage/files.h"
#include "model/storage/named_tensor.h"

namespace train_qat {

// Each thread takes a piece of about safetensors_staging_bytes through its checksum and into the file, and
// has the system send it to the disk while the next one comes. Memory that the host can address is written
// from where it is; what lies elsewhere is first copied into the buffer of the thread whose turn it is, by
// the caller's thread: so copy, checksums and writes go on at once.
class RowWriter {
  public:
    RowWriter(OutputFile& file, Backend& backend);

    // The bytes of `rows` from `data` (memory of the backend, unchanged until finish()) to their place behind
    // `tensor_offset`, where the tensor begins in the file. Throws what went wrong with an earlier piece.
    void write(int64_t tensor_offset, const void* data, const RowRange& rows);

    // When all is written: the sum of the rows' checksums (checksum.h). Throws what went wrong.
    uint64_t finish();

  private:
    struct Worker {
        std::vector<char> buffer;
        uint64_t sum = 0;
        TaskThread thread;  // last: its task uses the members above
    };
    void write_piece(Worker& worker, int64_t offset, const char* data, int64_t row_bytes, int64_t count);

    OutputFile& file_;
    Backend& backend_;
    const bool addressable_;
    size_t next_ = 0;
    std::array<Worker, 4> workers_;
};

}  // namespace train_qat
