#include "data/shared_text.h"

#include <algorithm>
#include <cstdint>

#include "data/shard.h"

namespace train_qat {

namespace {

constexpr int64_t most_compared = 4096, fewest_compared = 32;

// Whether `count` tokens are the same, from a position in each on.
bool equal(const Shard& a, int64_t in_a, const Shard& b, int64_t in_b, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (a.token(in_a + i) != b.token(in_b + i)) return false;
    return true;
}

bool share_text(const Shard& a, const Shard& b) {
    const int64_t shorter = std::min(a.token_count(), b.token_count());
    if (shorter < fewest_compared && a.token_count() != b.token_count()) return false;
    const int64_t count = std::min(shorter, most_compared);
    return equal(a, 0, b, 0, count) || equal(a, a.token_count() - count, b, b.token_count() - count, count);
}

}  // namespace

std::optional<std::pair<std::string, std::string>> find_shared_text(const std::vector<std::string>& shards,
                                                                    const std::vector<std::string>& others) {
    std::vector<Shard> opened;
    opened.reserve(others.size());
    for (const std::string& path : others) opened.emplace_back(path);
    for (const std::string& path : shards) {
        const Shard shard(path);
        for (const Shard& other : opened)
            if (share_text(shard, other)) return std::pair(path, other.path());
    }
    return std::nullopt;
}

}  // namespace train_qat
