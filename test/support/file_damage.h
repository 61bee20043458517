// What tests of file formats do to files, and what they expect of error messages.
#pragma once

#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "model/storage/checksum.h"
#include "test/support/catch.h"
#include "test/support/files.h"

namespace train_qat::test {

// One line that contains all of `words`.
inline bool mentions(const std::string& message, std::initializer_list<std::string> words) {
    UNSCOPED_INFO("message: " << message);
    return !message.empty() && message.find('\n') == std::string::npos &&
           std::all_of(words.begin(), words.end(),
                       [&](const auto& word) { return message.find(word) != std::string::npos; });
}

// The checksum that a safetensors file should have, step by step as model/storage/manifest.h says.
inline uint64_t checksum_by_rows(const std::string& file) {
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    const size_t begin = 8 + length;
    const auto piece = [&](size_t offset, size_t bytes) {
        return checksum_of(std::string_view(file).substr(offset, bytes), offset);
    };
    uint64_t sum = piece(0, begin);
    const auto header = nlohmann::json::parse(file.substr(8, length));
    for (const auto& [name, tensor] : header.items()) {
        if (name == "__metadata__") continue;
        const size_t first = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
        const size_t rows = tensor["shape"].size() > 1 ? tensor["shape"][0].get<size_t>() : 1;
        for (size_t offset = first; offset < end; offset += (end - first) / rows)
            sum += piece(begin + offset, (end - first) / rows);
    }
    return sum;
}

// While it lives, no file can grow beyond `bytes`: a disk that is full. Nothing may be asserted meanwhile,
// because that may print to a file.
class FileSizeLimit {
  public:
    explicit FileSizeLimit(rlim_t bytes) {
        handler_ = ::signal(SIGXFSZ, SIG_IGN);
        ::getrlimit(RLIMIT_FSIZE, &old_);
        const rlimit limit{bytes, old_.rlim_max};
        ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    ~FileSizeLimit() {
        ::setrlimit(RLIMIT_FSIZE, &old_);
        ::signal(SIGXFSZ, handler_);
    }
    FileSizeLimit(const FileSizeLimit&) = delete;
    FileSizeLimit& operator=(const FileSizeLimit&) = delete;

  private:
    rlimit old_{};
    sighandler_t handler_;
};

}  // namespace train_qat::test
