#include "data/shared_text.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <map>
#include <set>
#include <thread>
#include <tuple>

#include "data/mix_bits.h"
#include "data/shard.h"

namespace train_qat {

namespace {

// ---- beginnings and ends

constexpr int64_t most_compared = 4096, fewest_compared = 32;

// Whether `count` tokens are the same, from a position in each on.
bool equal(const Shard& a, int64_t in_a, const Shard& b, int64_t in_b, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (a.token(in_a + i) != b.token(in_b + i)) return false;
    return true;
}

bool share_an_end(const Shard& a, const Shard& b) {
    const int64_t shorter = std::min(a.token_count(), b.token_count());
    if (shorter < fewest_compared && a.token_count() != b.token_count()) return false;
    const int64_t count = std::min(shorter, most_compared);
    return equal(a, 0, b, 0, count) || equal(a, a.token_count() - count, b, b.token_count() - count, count);
}

// ---- what lies in the middle

// The others are read in blocks of one window; of the shards each window that begins within a block's length of a
// place is known. So a text that both hold is found wherever it lies in either, and a block costs one look-up.
constexpr int64_t window = 64, stretch = 2 * window - 1;
constexpr int64_t places_in_all = 512, fewest_places_of_shard = 16;
constexpr int fewest_different_tokens = 8;
constexpr int64_t piece_tokens = 32'768;
constexpr int64_t longest_boilerplate = 16'384;  // tokens of a licence, and more
constexpr size_t most_finds_of_place = 16;       // of each thread: texts that are everywhere

constexpr std::array<uint32_t, window> make_factors() {
    std::array<uint32_t, window> factors{};
    for (int64_t i = 0; i < window; ++i)
        factors[i] = static_cast<uint32_t>(mix_bits(static_cast<uint64_t>(i))) | 1;
    return factors;
}
constexpr std::array<uint32_t, window> factors = make_factors();

// Different windows may have the same, so that found ones are compared.
uint32_t hash_of(const int32_t* tokens) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < window; ++i) sum += factors[i] * static_cast<uint32_t>(tokens[i]);
    return sum;
}

std::vector<int32_t> tokens_of(const Shard& shard, int64_t begin, int64_t count) {
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    shard.copy(begin, count, UINT32_MAX, tokens.data());
    return tokens;
}

struct Place {
    size_t shard;
    int64_t begin;
    std::vector<int32_t> tokens;  // a stretch of them
};

// All windows of all places, by their hashes.
class Windows {
  public:
    explicit Windows(const std::vector<Shard>& shards) : places_of_shard_(shards.size()), seen_(1 << 20) {
        const auto wanted =
            std::max(fewest_places_of_shard, places_in_all / static_cast<int64_t>(shards.size()));
        for (size_t i = 0; i < shards.size(); ++i) {
            const int64_t count = std::min(wanted, shards[i].token_count() / stretch);
            for (int64_t place = 0; place < count; ++place) {
                const int64_t room = shards[i].token_count() - stretch;
                add({i, count == 1 ? 0 : room * place / (count - 1), {}}, shards[i]);
            }
        }
        std::sort(entries_.begin(), entries_.end());
    }

    const std::vector<Place>& places() const { return places_; }
    int64_t places_of_shard(size_t shard) const { return places_of_shard_[shard]; }

    // Calls found(place, tokens from its begin on) of each window that is these.
    template <typename Found>
    void find(const int32_t* tokens, const Found& found) const {
        const uint32_t hash = hash_of(tokens);
        if (!seen_[hash >> 12]) return;
        for (auto entry = std::lower_bound(entries_.begin(), entries_.end(), Entry{hash, 0, 0});
             entry != entries_.end() && entry->hash == hash; ++entry)
            if (std::equal(tokens, tokens + window, places_[entry->place].tokens.begin() + entry->offset))
                found(entry->place, entry->offset);
    }

  private:
    struct Entry {
        uint32_t hash, place;
        int32_t offset;
        bool operator<(const Entry& other) const {
            return std::tie(hash, place, offset) < std::tie(other.hash, other.place, other.offset);
        }
    };

    void add(Place place, const Shard& shard) {
        place.tokens = tokens_of(shard, place.begin, stretch);
        if (std::set<int32_t>(place.tokens.begin(), place.tokens.end()).size() < fewest_different_tokens)
            return;
        for (int64_t offset = 0; offset < window; ++offset) {
            const uint32_t hash = hash_of(place.tokens.data() + offset);
            entries_.push_back({hash, static_cast<uint32_t>(places_.size()), static_cast<int32_t>(offset)});
            seen_[hash >> 12] = true;
        }
        ++places_of_shard_[place.shard];
        places_.push_back(std::move(place));
    }

    std::vector<Place> places_;
    std::vector<int64_t> places_of_shard_;
    std::vector<Entry> entries_;
    std::vector<bool> seen_;  // by the first 20 bits of a hash: most blocks end here
};

struct Find {
    size_t other;
    int64_t shift;  // position there - position in the shard
    size_t place;
    bool operator<(const Find& find) const {
        return std::tie(other, shift, place) < std::tie(find.other, find.shift, find.place);
    }
};

// The windows of a piece, its first one at a multiple of their length.
void search_piece(const Windows& windows, const Shard& other, size_t number, int64_t begin,
                  std::vector<size_t>& finds_of_place, std::vector<Find>& finds) {
    const int64_t count = std::min(piece_tokens, other.token_count() - begin) / window * window;
    const std::vector<int32_t> tokens = tokens_of(other, begin, count);
    for (int64_t at = 0; at < count; at += window)
        windows.find(&tokens[static_cast<size_t>(at)], [&](size_t place, int64_t offset) {
            if (finds_of_place[place]++ >= most_finds_of_place) return;
            finds.push_back({number, begin + at - windows.places()[place].begin - offset, place});
        });
}

struct Search {
    std::vector<Find> finds;  // in order
    bool whole = true;        // all of the others was read
};

Search search(const Windows& windows, const std::vector<Shard>& others, int most_threads,
              int64_t most_tokens) {
    std::vector<std::pair<size_t, int64_t>> pieces;  // shard, begin
    for (size_t i = 0; i < others.size(); ++i)
        for (int64_t begin = 0; begin < others[i].token_count(); begin += piece_tokens)
            pieces.emplace_back(i, begin);
    const auto total = static_cast<int64_t>(pieces.size()) * piece_tokens;
    const auto every = static_cast<size_t>(std::max<int64_t>(1, (total + most_tokens - 1) / most_tokens));
    const size_t usable = most_threads > 0 ? most_threads : std::thread::hardware_concurrency();
    const size_t threads = std::max<size_t>(1, std::min(usable, pieces.size() / every / 8));  // each has some
    std::vector<std::vector<Find>> found(threads);
    std::vector<std::exception_ptr> errors(threads);
    std::atomic<size_t> next = 0;
    const auto work = [&](size_t thread) {
        std::vector<size_t> finds_of_place(windows.places().size(), 0);
        try {
            for (size_t i = next.fetch_add(every); i < pieces.size(); i = next.fetch_add(every)) {
                const auto [shard, begin] = pieces[i];
                search_piece(windows, others[shard], shard, begin, finds_of_place, found[thread]);
            }
        } catch (...) {
            errors[thread] = std::current_exception();
        }
    };
    std::vector<std::thread> workers;
    for (size_t thread = 1; thread < threads; ++thread) workers.emplace_back(work, thread);
    work(0);
    for (std::thread& worker : workers) worker.join();
    Search result{{}, every == 1};
    for (size_t thread = 0; thread < threads; ++thread) {
        if (errors[thread]) std::rethrow_exception(errors[thread]);
        result.finds.insert(result.finds.end(), found[thread].begin(), found[thread].end());
    }
    std::sort(result.finds.begin(), result.finds.end());
    return result;
}

// The other shard with most of this one's places, if so many are found that it is no accident.
std::optional<size_t> holder_of(size_t shard, const Windows& windows, const Search& search) {
    std::set<size_t> found;
    std::map<size_t, std::set<size_t>> found_in;
    std::map<std::pair<size_t, int64_t>, std::vector<size_t>> rows;  // one behind the other, as in the shard
    for (const Find& find : search.finds) {
        if (windows.places()[find.place].shard != shard) continue;
        found.insert(find.place);
        found_in[find.other].insert(find.place);
        rows[{find.other, find.shift}].push_back(find.place);
    }
    constexpr size_t fewest = 3, of_four = 4;
    if (search.whole) {
        const auto places = static_cast<size_t>(windows.places_of_shard(shard));
        if (found.size() < fewest || of_four * found.size() <= places) return std::nullopt;
        return std::max_element(
                   found_in.begin(), found_in.end(),
                   [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); })
            ->first;
    }
    for (const auto& [where, places] : rows)
        if (places.size() >= fewest &&
            windows.places()[places.back()].begin - windows.places()[places.front()].begin >
                longest_boilerplate)
            return where.first;
    return std::nullopt;
}

std::vector<Shard> opened(const std::vector<std::string>& paths) {
    std::vector<Shard> shards;
    shards.reserve(paths.size());
    for (const std::string& path : paths) shards.emplace_back(path);
    return shards;
}

}  // namespace

std::optional<std::pair<std::string, std::string>> find_shared_text(const std::vector<std::string>& shards,
                                                                    const std::vector<std::string>& others,
                                                                    int threads, int64_t most_tokens) {
    if (shards.empty()) return std::nullopt;
    const std::vector<Shard> ours = opened(shards), theirs = opened(others);
    for (const Shard& shard : ours)
        for (const Shard& other : theirs)
            if (share_an_end(shard, other)) return std::pair(shard.path(), other.path());
    const Windows windows(ours);
    const Search found = search(windows, theirs, threads, most_tokens);
    for (size_t i = 0; i < ours.size(); ++i)
        if (const auto holder = holder_of(i, windows, found))
            return std::pair(ours[i].path(), theirs[*holder].path());
    return std::nullopt;
}

}  // namespace train_qat
