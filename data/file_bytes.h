// Opening and reading files that a user has named, which may be anything.
#pragma once

#include <string>

namespace train_qat {

// Owns a POSIX file descriptor.
class FileDescriptor {
  public:
    explicit FileDescriptor(int descriptor = -1) : descriptor_(descriptor) {}
    ~FileDescriptor();
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;
    int get() const { return descriptor_; }
    int release();

  private:
    int descriptor_;
};

// A descriptor for reading, never of a pipe, device or folder: those would be waited for, or never end. -1 when there is
// none, and why_not says the reason.
int open_regular_file(const std::string& path, std::string& why_not);

// A whole small file. std::runtime_error that names the file, `kind`, such as "the tokenizer model", the reason, and `advice`.
std::string read_file(const std::string& path, const std::string& kind, const std::string& advice);

}  // namespace train_qat
