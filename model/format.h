// Text for people: printf's formats into a string.
#pragma once

#include <cstdio>
#include <string>

namespace train_qat {

// At most 511 characters; a longer result is cut.
template <typename... Values>
std::string formatted(const char* format, Values... values) {
    char text[512];
    std::snprintf(text, sizeof text, format, values...);
    return text;
}

}  // namespace train_qat
