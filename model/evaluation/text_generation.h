// What -sample does: continues a text with a checkpoint's model.
#pragma once

#include <ostream>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/job/options.h"

namespace train_qat {

// Collective; rank 0 generates. Writes options.sample and its continuation to `text` as it is made, then a line that says how
// fast that was and what memory allows. What else is to be said goes to `console`. std::runtime_error: checkpoint, tokenizer.
void generate_text(const Options& options, Backend& backend, Communicator& communicator, std::ostream& text,
                   std::ostream& console);

}  // namespace train_qat
