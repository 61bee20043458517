// Small files, read whole.
#pragma once

#include <string>

namespace train_qat {

// std::runtime_error that names the file, `kind`, such as "the tokenizer model", the system's reason, and `advice`.
std::string read_file(const std::string& path, const std::string& kind, const std::string& advice);

}  // namespace train_qat
