// Multiple-choice examples: a HellaSwag file in llm.c's format (arXiv 1905.07830), which prepare_hellaswag.py writes.
//
//   bytes 0..1023   header, 256 x int32, little endian
//     [0] magic 20240522   [1] version 1   [2] number of examples   [3] bytes of the longest example
//     [4] vocabulary size of the tokenizer, [5], [6] low and high 32 bits of its hash; 0 = unknown, as in llm.c's own files
//   then of each example, as uint16:
//     65535, bytes of the example (these two included), its index, the right completion, number of completions (4),
//     number of tokens and tokens of the context, then the same of each completion
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace train_qat {

struct HellaswagExample {
    std::vector<int32_t> context;                   // at least one token
    std::vector<std::vector<int32_t>> completions;  // 4, each of at least one token
    int64_t label = 0;                              // of the right one
};

// All examples of a file. std::runtime_error that begins with the path: the file can't be read, is another kind, is cut off or
// longer than it says, disagrees with itself, or has a token that is not below `vocabulary`, the model's.
std::vector<HellaswagExample> read_hellaswag(const std::string& path, int64_t vocabulary);

}  // namespace train_qat
