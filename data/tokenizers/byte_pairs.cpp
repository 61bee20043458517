#include "data/tokenizers/byte_pairs.h"

#include <queue>
#include <stdexcept>

namespace train_qat {
namespace {

uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// A token of the text so far, in the list of its neighbours. Those that others took up have id -1.
struct Link {
    int32_t id;
    int64_t previous, next;  // -1: none
};

// A pair that may become one. The leftmost of the earliest merge goes first.
struct Candidate {
    int32_t rank;
    int64_t left;
    int32_t left_id, right_id;  // as they were: another merge may have taken one of them meanwhile
    bool operator<(const Candidate& other) const {  // std::priority_queue begins with the largest
        return rank != other.rank ? rank > other.rank : left > other.left;
    }
};

}  // namespace

BytePairs::BytePairs(std::unordered_map<std::string, int32_t> tokens,
                     const std::vector<std::pair<std::string, std::string>>& merges, bool whole_words_first)
    : tokens_(std::move(tokens)), whole_words_first_(whole_words_first) {
    const auto id_of = [this](const std::string& bytes, const char* what) {
        const auto found = tokens_.find(bytes);
        if (found == tokens_.end()) throw std::runtime_error(std::string(what) + " has no token");
        return found->second;
    };
    for (int byte = 0; byte < 256; ++byte)
        of_byte_[byte] = id_of(std::string(1, static_cast<char>(byte)), "a byte");
    int32_t rank = 0;
    for (const auto& [left, right] : merges)
        merges_.emplace(key_of(id_of(left, "a merge's left part"), id_of(right, "a merge's right part")),
                        Merge{rank++, id_of(left + right, "a merge's result")});
}

const BytePairs::Merge* BytePairs::merge_of(int32_t left, int32_t right) const {
    const auto found = merges_.find(key_of(left, right));
    return found == merges_.end() ? nullptr : &found->second;
}

void BytePairs::encode(std::string_view bytes, std::vector<int32_t>& ids) const {
    if (whole_words_first_) {
        const auto whole = tokens_.find(std::string(bytes));
        if (whole != tokens_.end()) return ids.push_back(whole->second);
    }
    const auto count = static_cast<int64_t>(bytes.size());
    std::vector<Link> links(bytes.size());
    for (int64_t i = 0; i < count; ++i)
        links[i] = {of_byte_[static_cast<unsigned char>(bytes[i])], i - 1, i + 1 < count ? i + 1 : -1};
    std::priority_queue<Candidate> candidates;
    const auto consider = [&](int64_t left) {
        if (left < 0 || links[left].next < 0) return;
        const int32_t left_id = links[left].id, right_id = links[links[left].next].id;
        if (const Merge* merge = merge_of(left_id, right_id))
            candidates.push({merge->rank, left, left_id, right_id});
    };
    for (int64_t i = 0; i + 1 < count; ++i) consider(i);
    while (!candidates.empty()) {
        const Candidate best = candidates.top();
        candidates.pop();
        Link& left = links[best.left];
        if (left.id != best.left_id || left.next < 0 || links[left.next].id != best.right_id) continue;
        Link& right = links[left.next];
        left.id = merge_of(best.left_id, best.right_id)->result;
        right.id = -1;
        left.next = right.next;
        if (left.next >= 0) links[left.next].previous = best.left;
        consider(left.previous);
        consider(best.left);
    }
    for (int64_t i = count > 0 ? 0 : -1; i >= 0; i = links[i].next) ids.push_back(links[i].id);
}

}  // namespace train_qat
