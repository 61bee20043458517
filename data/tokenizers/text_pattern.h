// Regular expressions over UTF-8 text with Unicode's classes, by PCRE2.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace train_qat {

class TextPattern {
  public:
    // std::runtime_error with PCRE2's message where `expression` is none.
    explicit TextPattern(const std::string& expression);

    // The pieces of `text` that the pattern matches and those between them, in order. text: valid UTF-8,
    // else std::runtime_error.
    void divide(std::string_view text, const std::function<void(std::string_view)>& piece) const;

  private:
    std::shared_ptr<void> code_;  // keeps PCRE2's header out of this one
};

// Text that matches `literal` and nothing else, as an expression.
std::string literal_expression(const std::string& literal);

}  // namespace train_qat
