// How often a model finds the right one of four ends of a story: HellaSwag (arXiv 1905.07830), or any such examples.
#pragma once

#include <ostream>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/evaluation/trained_model.h"
#include "model/job/options.h"

namespace train_qat {

// Collective. Prints a table to `console`, for the weights in full precision and quantized, of the shares of examples of
// options.hellaswag whose right completion has, of all its example's completions,
//   the lowest mean loss a token  (what llm.c prints)
//   the lowest sum of losses      (what lm-evaluation-harness calls acc)
// each with its standard error sqrt(p (1 - p) / (n - 1)). Of contexts that do not fit the model's T positions with the
// completion the last tokens are read. std::runtime_error as read_hellaswag's, or where a completion alone has more than
// T tokens.
void evaluate_hellaswag(const Options& options, TrainedModel& trained, Backend& backend,
                        Communicator& communicator, std::ostream& console);

}  // namespace train_qat
