#include "model/storage/row_checksum.h"

#include <algorithm>
#include <string_view>

namespace train_qat {

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
