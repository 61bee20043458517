// What is fuzzed: readers of foreign bytes, each with inputs to begin from.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace train_qat::fuzz {

struct Target {
    std::string name;
    std::vector<std::string> seeds;  // well-formed inputs that mutations begin from
    // Reads `bytes`, which lie in the file `path`. std::runtime_error is the right end for a bad input; any other
    // exception, a signal or a report of a sanitizer is a finding.
    std::function<void(const std::string& bytes, const std::string& path)> read;
};

std::vector<Target> file_targets();      // shards, tensors, manifests, tokenizers, tuning tables
std::vector<Target> settings_targets();  // command lines, grids, laws

}  // namespace train_qat::fuzz
