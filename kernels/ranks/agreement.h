// What all ranks do with an error that one of them has: stop, all with the same message.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kernels/ranks/communicator.h"

namespace train_qat {

// An error that all ranks have, with the same message: one of them may say it, and all can end in order.
class JointError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Collective: calls `function` on every rank and returns when all are done. If it threw std::runtime_error or
// std::bad_alloc on some, all throw JointError "rank N: " and the message of the lowest such rank, cut off
// after about 1,000 bytes; without "rank N: " when all ranks say the same. A single rank sees its own
// exception, as thrown. No collective may stand inside `function`: a rank that has failed would not take part
// in it. Other exceptions (bugs, RankError: there is nobody left to agree with) pass through.
void run_together(Communicator& communicator, const std::function<void()>& function);

// The same with a function that only rank 0 calls; nobody asks which rank it was.
void run_on_rank_0(Communicator& communicator, const std::function<void()>& function);

// Collective: the text of rank 0, up to 1,000 bytes.
std::string text_of_rank_0(Communicator& communicator, const std::string& text);

// Collective: the sum over ranks, wrapping around.
uint64_t sum_over_ranks(Communicator& communicator, uint64_t mine);

}  // namespace train_qat
