// Ranks as threads of one process: tests of what runs on many ranks need no launcher.
#pragma once

#include <functional>

#include "kernels/ranks/communicator.h"

namespace train_qat::test {

// Calls body(communicator) on `ranks` threads and returns when all have ended. When a body throws,
// collectives of the others throw RankError, and the exception of the rank that threw first is rethrown.
void run_ranks(int ranks, const std::function<void(Communicator&)>& body);

}  // namespace train_qat::test
