// What -eval_only measures: the loss of a checkpoint's weights on the shards of -j, in full precision and quantized.
#pragma once

#include <ostream>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/job/options.h"

namespace train_qat {

// Collective. Prints a table to `console`: for the weights in full precision and for the quantized ones (of a
// full-precision checkpoint: rounded) the mean loss in nats, perplexity and, with -tokenizer, bits per byte of text, over the first
// -val_sequences sequences. std::runtime_error: checkpoint, shards or tokenizer.
void evaluate(const Options& options, Backend& backend, Communicator& communicator, std::ostream& console);

}  // namespace train_qat
