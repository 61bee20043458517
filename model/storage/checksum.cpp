#include "model/storage/checksum.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <new>

namespace train_qat {

uint64_t checksum_of(std::string_view bytes, uint64_t seed) {
    return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

std::string checksum_text(uint64_t checksum) {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(checksum));
    return text;
}

Checksum::Checksum(uint64_t seed) : state_(XXH3_createState()) {
    if (state_ == nullptr) throw std::bad_alloc();
    restart(seed);
}

Checksum::~Checksum() {
    XXH3_freeState(static_cast<XXH3_state_t*>(state_));
}

void Checksum::restart(uint64_t seed) {
    XXH3_64bits_reset_withSeed(static_cast<XXH3_state_t*>(state_), seed);
}

void Checksum::update(const void* data, int64_t bytes) {
    XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), data, static_cast<size_t>(bytes));
}

uint64_t Checksum::value() const {
    return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_));
}

void RowChecksum::update(const char* data, int64_t bytes) {
    while (bytes > 0) {
        const int64_t count = std::min(bytes, row_bytes_ - done_);
        if (count == row_bytes_) {
            sum_ += checksum_of({data, static_cast<size_t>(count)}, static_cast<uint64_t>(offset_));
        } else {
            if (done_ == 0) row_.restart(static_cast<uint64_t>(offset_));
            row_.update(data, count);
            if (done_ + count == row_bytes_) sum_ += row_.value();
        }
        done_ = (done_ + count) % row_bytes_;
        if (done_ == 0) offset_ += row_bytes_;
        data += count;
        bytes -= count;
    }
}

}  // namespace train_qat
