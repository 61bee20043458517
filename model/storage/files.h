// Files that are either whole or absent: checked writes, flushed to the disk.
//
// Every error is a std::runtime_error of one line that starts with the path.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "data/file_bytes.h"

namespace train_qat {

[[noreturn]] void throw_file_error(const std::string& path, const std::string& message);

// `text` in double quotes with control characters escaped, so that names from foreign files stay on one line.
std::string in_quotes(const std::string& text);

// Bytes that an unprivileged process can still write to the file system of `path`.
int64_t available_disk_bytes(const std::string& path);

// Writes all bytes, or throws; at `offset`, or with -1 where the file stands. A full disk is reported with
// what is missing: the rest of `data` plus `bytes_to_follow`.
void write_all(int descriptor, const std::string& path, const void* data, int64_t bytes,
               int64_t bytes_to_follow = 0, int64_t offset = -1);

// A new file. Unless keep() or finish() is reached, the destructor removes it.
class OutputFile {
  public:
    // `expected_bytes`: that will be written through this object, for the message about a full disk. Throws
    // if `path` exists.
    explicit OutputFile(const std::string& path, int64_t expected_bytes = 0);

    // One that another process has created and removes or keeps; this object writes a part of it.
    struct Shared {};
    OutputFile(const std::string& path, int64_t expected_bytes, Shared);

    ~OutputFile();
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;

    // Makes the file this large and takes its space on the disk, so that a full disk shows at once. Where the
    // file system can't, only its size is set.
    void reserve(int64_t bytes);
    void write(const void* data, int64_t bytes);  // after what was last written
    // By any number of threads at once.
    void write_at(int64_t offset, const void* data, int64_t bytes);
    // Has the system begin to move written bytes to the disk, for flush() to find less to wait for.
    void send_to_disk(int64_t offset, int64_t bytes);
    void flush();  // to the disk, and closes
    void keep() { removed_unless_kept_ = false; }
    void finish();  // flush() and keep()

  private:
    void write_counted(const void* data, int64_t bytes, int64_t offset);

    std::string path_;
    int64_t expected_bytes_;
    FileDescriptor descriptor_;
    std::atomic<int64_t> written_ = 0;
    bool removed_unless_kept_ = false;
};

// An existing regular file, read at any offset.
class InputFile {
  public:
    explicit InputFile(const std::string& path);
    const std::string& path() const { return path_; }
    int64_t bytes() const { return bytes_; }
    void read_at(int64_t offset, void* data, int64_t bytes) const;  // all of them, or throws

  private:
    std::string path_;
    FileDescriptor descriptor_;
    int64_t bytes_ = 0;
};

std::string read_text_file(const std::string& path);

// `path` holds either its old content or all of `text`, whatever happens in between.
void write_file_atomically(const std::string& path, std::string_view text);

// A created, renamed or removed name is only durable once its directory is flushed.
void sync_directory(const std::string& directory);
std::string parent_directory(const std::string& path);

}  // namespace train_qat
