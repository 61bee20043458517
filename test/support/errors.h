// What an action throws, for tests of messages.
#pragma once

#include <exception>
#include <string>

namespace train_qat::test {

// Its text; "" if the action does not throw an Error. Other exceptions pass.
template <typename Error = std::exception, typename Action>
std::string error_of(Action&& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

}  // namespace train_qat::test
