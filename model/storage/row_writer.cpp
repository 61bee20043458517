#include "model/storage/row_writer.h"

#include <algorithm>
#include <string_view>

#include "model/storage/checksum.h"
#include "model/storage/safetensors.h"

namespace train_qat {

RowWriter::RowWriter(OutputFile& file, Backend& backend)
    : file_(file), backend_(backend), addressable_(backend.host_addressable()) {
    if (addressable_) backend.synchronize();  // copies would wait for the device
}

// A piece has whole rows, so that its checksums need nothing of other pieces: of one longer than the buffer,
// one row.
void RowWriter::write(int64_t tensor_offset, const void* data, const RowRange& rows) {
    if (rows.bytes() == 0) return;
    const int64_t piece_rows = std::max<int64_t>(1, safetensors_staging_bytes / rows.row_bytes);
    for (int64_t done = 0; done < rows.count; done += piece_rows) {
        const int64_t count = std::min(piece_rows, rows.count - done);
        const int64_t offset = tensor_offset + rows.offset() + done * rows.row_bytes;
        const char* source = static_cast<const char*>(data) + done * rows.row_bytes;
        Worker& worker = workers_[next_++ % workers_.size()];
        if (!addressable_) {
            worker.thread.wait();  // its buffer is in use until then
            const auto bytes = static_cast<size_t>(count * rows.row_bytes);
            if (worker.buffer.size() < bytes) worker.buffer.resize(bytes);
            backend_.copy_to_host(worker.buffer.data(), source, static_cast<int64_t>(bytes));
            source = worker.buffer.data();
        }
        worker.thread.add([this, &worker, offset, source, row_bytes = rows.row_bytes, count] {
            write_piece(worker, offset, source, row_bytes, count);
        });
    }
}

void RowWriter::write_piece(Worker& worker, int64_t offset, const char* data, int64_t row_bytes,
                            int64_t count) {
    for (int64_t row = 0; row < count; ++row)
        worker.sum += checksum_of({data + row * row_bytes, static_cast<size_t>(row_bytes)},
                                  static_cast<uint64_t>(offset + row * row_bytes));
    file_.write_at(offset, data, count * row_bytes);
    file_.send_to_disk(offset, count * row_bytes);
}

uint64_t RowWriter::finish() {
    uint64_t sum = 0;
    for (Worker& worker : workers_) {
        worker.thread.wait();
        sum += worker.sum;
    }
    return sum;
}

}  // namespace train_qat
