// Reads a loss law from the file that scripts/scaling_law.py fits:
//
//   {"format": "train_qat scaling law 2",
//    "source": {"runs": 480, "vocabulary": 1024, "data": ["0123456789abcdef"], "cooldown": "classic"},
//    "fitted_range": {"parameters": [254528, 1008576], "tokens": [1.5e6, 2.5e7],
//                     "tokens_per_parameter_byte": [6.1, 786], "qat_fraction": [0.03, 0.68], "bits": [1, 2, 4],
//                     "full_precision": {"parameters": [254528, 1008576], "tokens": [1.5e6, 1e7]}},
//    "loss_law": {"coefficients": {"alpha": 2.1, ...},
//                 "bootstrap": {"alpha": [2.0, ...], ..., "loss_misfit": [-0.01, ...],
//                               "full_precision_misfit": [0.02, ...], "fraction_misfit": [0.2, ...]}},
//    "fraction_law": {"a": 5.1, "bootstrap": {"a": [5.0, ...], "misfit": [-0.3, ...]}},
//    "optimal_fraction": "loss_law"}
//
// with all coefficients of model/plan/scaling_law.h, under "bootstrap" as arrays of one length, at least 20, of which
// the i-th numbers belong together (LossSample, FractionSample). "full_precision": null if no run was. "optimal_fraction": "loss_law" or "fraction_law", by which f* is predicted. Other
// keys are ignored.
#pragma once

#include <string>

#include "model/plan/scaling_law.h"

namespace train_qat {

// std::runtime_error of one line that begins with -law and names the file, the key and what is wrong with it.
ScalingLaw read_scaling_law(const std::string& path);

}  // namespace train_qat
