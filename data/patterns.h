// Which files a pattern on the command line names.
#pragma once

#include <string>
#include <vector>

namespace train_qat {

// The sorted files that a comma list of paths and globs names, each once. Throws std::runtime_error naming
// the pattern that matches nothing.
std::vector<std::string> expand_patterns(const std::string& patterns);

}  // namespace train_qat
