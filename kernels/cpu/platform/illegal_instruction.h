// One line before the end when a library executes an instruction that this CPU refuses.
#pragma once

#include <string>

namespace train_qat {

// From now on such a death by SIGILL writes one line to stderr first: this CPU, and oneDNN's version. Whatever handled
// the signal before still gets it.
void explain_illegal_instructions(const std::string& cpu);

}  // namespace train_qat
