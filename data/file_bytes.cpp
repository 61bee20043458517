#include "data/file_bytes.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

namespace train_qat {

std::string read_file(const std::string& path, const std::string& kind, const std::string& advice) {
    const auto fail = [&] {
        const int error = errno;
        throw std::runtime_error(path + ": cannot read " + kind + ": " + std::strerror(error) + "; " +
                                 advice);
    };
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
    if (!file) fail();
    std::string bytes;
    char buffer[1 << 16];
    while (const size_t count = std::fread(buffer, 1, sizeof buffer, file.get())) bytes.append(buffer, count);
    if (std::ferror(file.get())) fail();
    return bytes;
}

}  // namespace train_qat
