// Shards that hold the same text, whatever they are called.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace train_qat {

inline constexpr int64_t most_searched_tokens = int64_t{1} << 30;

// The first of `shards` that shares its text with one of `others`, and that one; nothing when all are apart.
// Two shards share text when they begin or end with the same tokens, as many as the shorter one has, at most
// 4,096: copies, links, cut and lengthened ones, with any header. Of shards of fewer than 32 tokens only equal
// ones count.
//
// Else, for shards cut in other places or documents in another order: of 512 places evenly spread over `shards`, at least
// 16 of each, windows of 64 tokens are looked for in all of the others, wherever they lie there. A shard shares its text
// when more than a quarter of its places are found, and at least 3: of common collections of web texts several percent of
// what is held out is also trained on (arXiv 2107.06499), books repeat their licence, and neither is a mistake. Places with fewer than 8 different tokens
// are left out: rulers and empty tables are everywhere. What is shared in smaller part, or in runs of fewer than 127
// tokens, is not noticed.
// On 2 busy cores (Zen 5) 500 million tokens in the page cache take 0.25 s.
//
// Of more than `most_tokens` only evenly spaced pieces of 32,768 tokens are read. What is then found says little of what
// was not read, so that three places must lie behind one another as in the shard, over more than 16,384 tokens, longer
// than a licence: a shard that lies as one piece in 100 times as many tokens as are read is still found mostly (of its 512
// places some 5 are read), documents in another order are not.
//
// threads: 0 for all. std::runtime_error as Shard's.
std::optional<std::pair<std::string, std::string>> find_shared_text(
    const std::vector<std::string>& shards, const std::vector<std::string>& others, int threads = 0,
    int64_t most_tokens = most_searched_tokens);

}  // namespace train_qat
