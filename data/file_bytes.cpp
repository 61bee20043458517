#include "data/file_bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace train_qat {

namespace {

const char* kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

}  // namespace

FileDescriptor::~FileDescriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

int FileDescriptor::release() {
    return std::exchange(descriptor_, -1);
}

int open_regular_file(const std::string& path, std::string& why_not) {
    FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    const int error = errno;
    struct stat status;
    const bool known = (file.get() >= 0 ? ::fstat(file.get(), &status) : ::stat(path.c_str(), &status)) == 0;
    if (known && !S_ISREG(status.st_mode))
        why_not = std::string("it is ") + kind_of(status.st_mode) + ", not a regular file";
    else if (file.get() < 0 || !known)
        why_not = std::strerror(file.get() < 0 ? error : errno);
    else
        return file.release();
    return -1;
}

std::string read_file(const std::string& path, const std::string& kind, const std::string& advice) {
    const auto fail = [&](const std::string& reason) {
        throw std::runtime_error(path + ": cannot read " + kind + ": " + reason + "; " + advice);
    };
    std::string why_not;
    const FileDescriptor file(open_regular_file(path, why_not));
    if (file.get() < 0) fail(why_not);
    std::string bytes;
    char buffer[1 << 16];
    while (true) {
        const ssize_t count = ::read(file.get(), buffer, sizeof buffer);
        if (count == 0) return bytes;
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail(std::strerror(errno));
        bytes.append(buffer, static_cast<size_t>(count));
    }
}

}  // namespace train_qat
