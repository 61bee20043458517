// What every communicator must do, as checks that all its ranks run together.
#pragma once

#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"

namespace train_qat::test {

// Runs the collectives on random arrays in the backend's memory: even and uneven divisions, fewer rows than
// ranks, empty arrays, several at once, large ones, all of them one after another without waiting, replayed
// ones. Returns what was wrong on this rank.
std::vector<std::string> check_collectives(Communicator& communicator, Backend& backend);

}  // namespace train_qat::test
