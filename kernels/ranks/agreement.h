// What all ranks do with an error that one of them has: stop, all with the same message.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "kernels/ranks/communicator.h"

namespace train_qat {

// An error that all ranks have, with the same message: one of them may say it, and all can end in order.
class JointError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// run_together of a function that returns nothing.
void fail_together(Communicator& communicator, const std::function<void()>& function);

// Collective: calls `function` on every rank and returns what it returned, when all are done. If it threw
// std::runtime_error or std::bad_alloc on some, all throw JointError "rank N: " and the message of the lowest
// such rank, cut off after about 1,000 bytes; without "rank N: " when all ranks say the same. A single rank
// sees its own exception, as thrown. No collective may stand inside `function`: a rank that has failed would
// not take part in it. Other exceptions (bugs, RankError: there is nobody left to agree with) pass through.
template <typename Function>
auto run_together(Communicator& communicator, Function&& function) {
    using Value = std::invoke_result_t<Function&>;
    if constexpr (std::is_void_v<Value>) {
        fail_together(communicator, std::ref(function));
    } else {
        std::optional<Value> value;
        fail_together(communicator, [&] { value.emplace(function()); });
        return Value(std::move(*value));
    }
}

// The same with a function that only rank 0 calls; nobody asks which rank it was.
void run_on_rank_0(Communicator& communicator, const std::function<void()>& function);

// Collective: the text of rank 0, up to 1,000 bytes.
std::string text_of_rank_0(Communicator& communicator, const std::string& text);

// Collective: the sum over ranks, wrapping around.
uint64_t sum_over_ranks(Communicator& communicator, uint64_t mine);

}  // namespace train_qat
