// What -eval_only measures of a checkpoint's weights, in full precision and quantized: the loss on the shards of -j, right
// answers to the examples of -hellaswag.
#pragma once

#include <ostream>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/job/options.h"

namespace train_qat {

// Collective. Prints tables to `console`. Of -j: for the weights in full precision and for the quantized ones (of a
// full-precision checkpoint: rounded) the mean loss in nats, perplexity and, with -tokenizer, bits per byte of text, over the first
// -val_sequences sequences. Of -hellaswag: see evaluate_hellaswag. std::runtime_error: checkpoint, shards, tokenizer or
// examples.
void evaluate(const Options& options, Backend& backend, Communicator& communicator, std::ostream& console);

}  // namespace train_qat
