// What tests of file formats do to files, and what they expect of error messages.
#pragma once

#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>

#include "test/catch.h"
#include "test/files.h"

namespace train_qat::test {

inline std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// One line that contains all of `words`.
inline bool mentions(const std::string& message, std::initializer_list<std::string> words) {
    UNSCOPED_INFO("message: " << message);
    return !message.empty() && message.find('\n') == std::string::npos &&
           std::all_of(words.begin(), words.end(),
                       [&](const auto& word) { return message.find(word) != std::string::npos; });
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
