#include "model/storage/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/units.h"

namespace train_qat {
namespace {

[[noreturn]] void throw_errno(const std::string& path, const std::string& action) {
    const int error = errno;
    throw_file_error(path, "cannot " + action + ": " + std::strerror(error));
}

[[noreturn]] void throw_write_error(const std::string& path, int64_t missing) {
    const int error = errno;
    if (error == ENOSPC || error == EDQUOT) {
        throw_file_error(
            path, std::string(error == ENOSPC ? "no space left on its file system" : "disk quota exceeded") +
                      ": needs " + format_bytes(missing) + " more, " +
                      format_bytes(available_disk_bytes(path)) +
                      " available; free some space or write to another disk");
    }
    if (error == EFBIG) {
        throw_file_error(path, "larger than this process may write (" + format_bytes(missing) +
                                   " missing); raise the file size limit (ulimit -f)");
    }
    errno = error;
    throw_errno(path, "write");
}

}  // namespace

void throw_file_error(const std::string& path, const std::string& message) {
    throw std::runtime_error(path + ": " + message);
}

std::string in_quotes(const std::string& text) {
    return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

int64_t available_disk_bytes(const std::string& path) {
    struct statvfs status;
    if (::statvfs(path.c_str(), &status) != 0) throw_errno(path, "ask for the free disk space");
    return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

void write_all(int descriptor, const std::string& path, const void* data, int64_t bytes,
               int64_t bytes_to_follow, int64_t offset) {
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {
        const size_t count = static_cast<size_t>(std::min(bytes, int64_t{1} << 30));
        const ssize_t written = offset < 0 ? ::write(descriptor, next, count)
                                           : ::pwrite(descriptor, next, count, static_cast<off_t>(offset));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) throw_write_error(path, bytes + bytes_to_follow);
        next += written;
        bytes -= written;
        if (offset >= 0) offset += written;
    }
}

OutputFile::OutputFile(const std::string& path, int64_t expected_bytes)
    : path_(path),
      expected_bytes_(expected_bytes),
      descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)) {
    removed_unless_kept_ = descriptor_.get() >= 0;
    if (removed_unless_kept_) return;
    if (errno == EEXIST) throw_file_error(path, "exists already; remove it or choose another name");
    throw_errno(path, "create");
}

OutputFile::OutputFile(const std::string& path, int64_t expected_bytes, Shared)
    : path_(path), expected_bytes_(expected_bytes), descriptor_(::open(path.c_str(), O_WRONLY | O_CLOEXEC)) {
    if (descriptor_.get() >= 0) return;
    if (errno == ENOENT) {
        throw_file_error(path,
                         "not there, although another rank has just created it; all ranks must write "
                         "to one file system");
    }
    throw_errno(path, "open");
}

OutputFile::~OutputFile() {
    if (removed_unless_kept_) ::unlink(path_.c_str());
}

void OutputFile::reserve(int64_t bytes) {
    // Not posix_fallocate: where the file system can't, it writes into every block.
    int result;
    do result = ::fallocate(descriptor_.get(), 0, 0, static_cast<off_t>(bytes));
    while (result != 0 && errno == EINTR);
    if (result != 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
        result = ::ftruncate(descriptor_.get(), static_cast<off_t>(bytes));
    if (result != 0) throw_write_error(path_, bytes);
}

void OutputFile::write_counted(const void* data, int64_t bytes, int64_t offset) {
    const int64_t to_follow = std::max<int64_t>(0, expected_bytes_ - written_ - bytes);
    write_all(descriptor_.get(), path_, data, bytes, to_follow, offset);
    written_ += bytes;
}

void OutputFile::write(const void* data, int64_t bytes) {
    write_counted(data, bytes, -1);
}

void OutputFile::write_at(int64_t offset, const void* data, int64_t bytes) {
    write_counted(data, bytes, offset);
}

void OutputFile::send_to_disk(int64_t offset, int64_t bytes) {
    // Only a hint: whatever it does not do, and every error of the disk, is left to flush().
    ::sync_file_range(descriptor_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes),
                      SYNC_FILE_RANGE_WRITE);
}

void OutputFile::flush() {
    // File systems with delayed allocation or on a network report a full disk only here.
    if (::fsync(descriptor_.get()) != 0) throw_write_error(path_, expected_bytes_);
    if (::close(descriptor_.release()) != 0) throw_write_error(path_, expected_bytes_);
}

void OutputFile::finish() {
    flush();
    keep();
}

namespace {

int open_or_throw(const std::string& path) {
    std::string why_not;
    const int descriptor = open_regular_file(path, why_not);
    if (descriptor < 0) throw_file_error(path, "cannot open: " + why_not);
    return descriptor;
}

}  // namespace

InputFile::InputFile(const std::string& path) : path_(path), descriptor_(open_or_throw(path)) {
    struct stat status;
    if (::fstat(descriptor_.get(), &status) != 0) throw_errno(path, "inspect");
    bytes_ = status.st_size;
}

void InputFile::read_at(int64_t offset, void* data, int64_t bytes) const {
    char* next = static_cast<char*>(data);
    while (bytes > 0) {
        const size_t count = static_cast<size_t>(std::min(bytes, int64_t{1} << 30));
        const ssize_t got = ::pread(descriptor_.get(), next, count, offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw_errno(path_, "read");
        if (got == 0) throw_file_error(path_, "ended while it was read: it was truncated meanwhile");
        next += got;
        offset += got;
        bytes -= got;
    }
}

std::string read_text_file(const std::string& path) {
    const InputFile file(path);
    std::string text(static_cast<size_t>(file.bytes()), '\0');
    file.read_at(0, text.data(), file.bytes());
    return text;
}

void write_file_atomically(const std::string& path, std::string_view text) {
    const std::string temporary = path + ".partial";
    ::unlink(temporary.c_str());  // of a run that was killed at this point
    OutputFile file(temporary, static_cast<int64_t>(text.size()));
    file.write(text.data(), static_cast<int64_t>(text.size()));
    file.finish();
    if (::rename(temporary.c_str(), path.c_str()) != 0) {
        const int error = errno;
        ::unlink(temporary.c_str());
        throw_file_error(path, std::string("cannot replace: ") + std::strerror(error));
    }
    sync_directory(parent_directory(path));
}

void sync_directory(const std::string& directory) {
    const FileDescriptor descriptor(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (descriptor.get() < 0) throw_errno(directory, "open directory");
    // Some network file systems can't flush directories and say so with EINVAL.
    if (::fsync(descriptor.get()) != 0 && errno != EINVAL) throw_errno(directory, "flush directory");
}

std::string parent_directory(const std::string& path) {
    const std::string parent = std::filesystem::path(path).parent_path().string();
    return parent.empty() ? "." : parent;
}

}  // namespace train_qat
