// Command lines as tests write them: one text.
#pragma once

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "model/job/options.h"
#include "test/support/files.h"

namespace train_qat::test {

// Arguments split at blanks.
inline std::vector<std::string> words(const std::string& line) {
    std::istringstream stream(line);
    return {std::istream_iterator<std::string>(stream), {}};
}

inline Options parse(const std::string& line) {
    return *parse_command_line(words(line));
}

inline std::string parse_error(const std::string& line) {
    return error_of([&] { parse_command_line(words(line)); });
}

}  // namespace train_qat::test
