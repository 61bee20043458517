// Checksums: of bytes, and of a file of tensors as a sum over its rows, so that ranks can form it together.
//
// XXH3, 64 bits (libxxhash). It runs at memory speed and finds accidental damage; it is no protection against
// a forger. Of a file of tensors:
//
//   checksum = sum modulo 2^64 over the pieces of the file of XXH3_64(piece, seed = its offset in the file)
//
// The pieces are everything before the data, and the rows of the tensors: the bytes of one index of the
// leading dimension; a tensor with one dimension or none is one row, one without bytes has no rows. A piece
// that moved, also among equal ones, changes its seed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace train_qat {

uint64_t checksum_of(std::string_view bytes, uint64_t seed = 0);
std::string checksum_text(uint64_t checksum);  // 16 hexadecimal digits

// The checksum of bytes that come piece by piece.
class Checksum {
  public:
    explicit Checksum(uint64_t seed = 0);
    ~Checksum();
    Checksum(const Checksum&) = delete;
    Checksum& operator=(const Checksum&) = delete;
    void restart(uint64_t seed);
    void update(const void* data, int64_t bytes);
    uint64_t value() const;

  private:
    void* state_;
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

// What a manifest keeps of a file of tensors.
struct FileSummary {
    int64_t bytes = 0;
    uint64_t checksum = 0;
};

}  // namespace train_qat
