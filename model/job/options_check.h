// What values and combinations of flags mean something.
#pragma once

#include <string>
#include <vector>

#include "model/job/options.h"

namespace train_qat {

// std::runtime_error with `message` unless `condition`.
void require(bool condition, const std::string& message);

// std::runtime_error naming the first flag with an empty value: one of a shell's unset variable would count as none given.
// -sample and -prompt are texts, which may be empty.
void check_no_value_is_empty(const std::vector<std::string>& arguments);

// std::runtime_error with one line that names the first flag that is wrong and says what would be right.
void check_options(const Options& options);

// The same for flags that have no effect on what is asked for: training, a sweep, a measurement, a text. given: names
// without dashes. Looks whether -e names a Hugging Face folder.
void check_mode(const Options& options, const std::vector<std::string>& given);

}  // namespace train_qat
