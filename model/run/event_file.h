// TensorBoard's event files: the curves of a run for that dashboard.
//
//   record   8 bytes length, 4 bytes crc(length), the event, 4 bytes crc(event); little endian
//   crc      CRC-32C, rotated right by 15 bits, plus 0xa282ead8
//   event    a protocol buffer: 1 wall_time (double), 2 step (int64), 3 file_version (string), 5 summary, 7 session_log
//
// Source: TensorFlow's event.proto, summary.proto and record_writer.h.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "model/storage/files.h"

namespace train_qat {

// CRC-32C (Castagnoli) of the bytes.
uint32_t crc32c(std::string_view bytes);

class EventFile {
  public:
    struct Scalar {
        const char* tag;
        double value;
    };

    // A new file OUTPUT/events.out.tfevents.SECONDS.PID. first_step: of a run that goes on; readers then drop what earlier
    // files say of this step and later ones. Throws std::runtime_error.
    EventFile(const std::string& output_directory, std::optional<int64_t> first_step);

    // One event, appended with one write. Throws std::runtime_error when the disk is full.
    void write(int64_t step, std::initializer_list<Scalar> scalars);

  private:
    void append(const std::string& event);

    std::string path_;
    std::unique_ptr<FileDescriptor> descriptor_;
};

}  // namespace train_qat
