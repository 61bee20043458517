// The checksum of a file of tensors: a sum over its rows, so that ranks can form it together.
//
//   checksum = sum modulo 2^64 over the pieces of the file of XXH3_64(piece, seed = offset of the piece in
//   the
//              file)
// The pieces are the rows of the tensors - the bytes of one index of the leading dimension; a tensor with one
// dimension or none is one row, one without bytes has no rows - and everything before the data. A piece that
// moved, also among equal ones, changes its seed. XXH3 runs at memory speed and finds accidental damage; it
// is no protection against a forger.
#pragma once

#include <cstdint>

#include "model/storage/files.h"

namespace train_qat {

struct FileSummary {
    int64_t bytes = 0;
    uint64_t checksum = 0;
};

// The sum over rows that follow one another, fed in pieces of any size.
class RowChecksum {
  public:
    // `offset`: of the first row in the file. row_bytes > 0.
    RowChecksum(int64_t offset, int64_t row_bytes) : offset_(offset), row_bytes_(row_bytes) {}
    void update(const char* data, int64_t bytes);
    uint64_t value() const { return sum_; }  // of the rows that are complete

  private:
    int64_t offset_;  // of the row at hand
    int64_t row_bytes_;
    int64_t done_ = 0;  // bytes of it
    Checksum row_;
    uint64_t sum_ = 0;
};

}  // namespace train_qat
