// Shards that hold the same text, whatever they are called.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace train_qat {

// The first of `shards` that shares its text with one of `others`, and that one; nothing when all are apart.
// Two shards share text when they begin or end with the same tokens, as many as the shorter one has, at most
// 4,096: copies, links, cut and lengthened ones, with any header. Of shards of fewer than 32 tokens only equal
// ones count. Reads a page or two of each. std::runtime_error as Shard's.
std::optional<std::pair<std::string, std::string>> find_shared_text(const std::vector<std::string>& shards,
                                                                    const std::vector<std::string>& others);

}  // namespace train_qat
