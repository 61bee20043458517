#include "data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "data/patterns.h"
#include "data/permutation.h"

namespace train_qat {
namespace {

std::string hexadecimal(uint64_t value) {
    char text[19];
    std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(value));
    return text;
}

void check_options(const LoaderOptions& options) {
    if (options.sequence_length < 1) {
        throw std::logic_error("DataLoader: sequence_length must be at least 1, got " +
                               std::to_string(options.sequence_length));
    }
    if (options.world_size < 1 || options.rank < 0 || options.rank >= options.world_size) {
        throw std::logic_error("DataLoader: rank " + std::to_string(options.rank) +
                               " is not inside a world of " + std::to_string(options.world_size));
    }
    if (options.vocabulary_size == 0) throw std::logic_error("DataLoader: vocabulary_size is not set");
}

}  // namespace

// Reads one batch ahead on its own thread. The owner calls start and take; the thread holds the other buffer.
class DataLoader::Prefetcher {
  public:
    explicit Prefetcher(const DataLoader& loader) : loader_(loader), thread_([this] { run(); }) {}

    ~Prefetcher() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        thread_.join();
    }

    // Starts to read `request`, after whatever is being read; an earlier result that nobody took is dropped.
    void start(const Request& request) {
        {
            const std::lock_guard lock(mutex_);
            wanted_ = request;
            state_ = State::wanted;
        }
        wake_.notify_all();
    }

    // Swaps the tokens of `request` into `tokens`, reading them first if they aren't the ones read ahead.
    // Throws what reading them threw.
    void take(const Request& request, std::vector<int32_t>& tokens) {
        std::unique_lock lock(mutex_);
        if (state_ == State::idle || wanted_ != request) {
            wanted_ = request;
            state_ = State::wanted;
            wake_.notify_all();
        }
        wake_.wait(lock, [&] { return state_ == State::ready; });
        state_ = State::idle;
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
        tokens.swap(ready_tokens_);
    }

  private:
    enum class State { idle, wanted, reading, ready };

    void run() {
        std::vector<int32_t> tokens;
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return stopping_ || state_ == State::wanted; });
            if (stopping_) return;
            const Request request = wanted_;
            state_ = State::reading;
            lock.unlock();
            std::exception_ptr error;
            try {
                loader_.read_samples(request, tokens);
            } catch (...) {
                error = std::current_exception();
            }
            lock.lock();
            if (state_ != State::reading) continue;  // something else was asked for meanwhile
            error_ = error;
            ready_tokens_.swap(tokens);
            state_ = State::ready;
            wake_.notify_all();
        }
    }

    const DataLoader& loader_;
    std::mutex mutex_;
    std::condition_variable wake_;
    State state_ = State::idle;
    bool stopping_ = false;
    Request wanted_;
    std::vector<int32_t> ready_tokens_;
    std::exception_ptr error_;
    std::thread thread_;  // last: it uses the members above
};

DataLoader::DataLoader(const std::string& patterns, const LoaderOptions& options) : options_(options) {
    check_options(options);
    open_shards(patterns);
    number_samples(patterns);
    prefetcher_ = std::make_unique<Prefetcher>(*this);
}

DataLoader::~DataLoader() = default;

void DataLoader::open_shards(const std::string& patterns) {
    const std::vector<std::string> paths = expand_patterns(patterns);
    shards_.reserve(paths.size());  // check_tokenizer keeps pointers to shards
    const Shard* with_vocabulary = nullptr;
    const Shard* with_hash = nullptr;
    for (const std::string& path : paths) {
        const Shard& shard = shards_.emplace_back(path);
        shard.expect(options_.shuffle ? Shard::Access::random : Shard::Access::sequential);
        check_tokenizer(shard, with_vocabulary, with_hash);
    }
}

// with_vocabulary, with_hash: the first shard so far that states its vocabulary size, its tokenizer hash; a
// shard that states nothing (llm.c's own) goes with every other, its ids are checked as they are read.
void DataLoader::check_tokenizer(const Shard& shard, const Shard*& with_vocabulary, const Shard*& with_hash) {
    const uint32_t vocabulary = shard.vocabulary_size();
    const uint64_t hash = shard.tokenizer_hash();
    if (vocabulary > options_.vocabulary_size) {
        throw std::runtime_error(shard.path() + ": made with a vocabulary of " + std::to_string(vocabulary) +
                                 " tokens, but the model's has " + std::to_string(options_.vocabulary_size) +
                                 "; set the model's vocabulary size to at least " +
                                 std::to_string(vocabulary));
    }
    if (hash != 0 && options_.expected_tokenizer_hash != 0 && hash != options_.expected_tokenizer_hash) {
        throw std::runtime_error(
            shard.path() + ": made with the tokenizer " + hexadecimal(hash) + ", but the expected one is " +
            hexadecimal(options_.expected_tokenizer_hash) + "; prepare the data with that tokenizer");
    }
    if (vocabulary != 0 && with_vocabulary == nullptr) with_vocabulary = &shard;
    if (hash != 0 && with_hash == nullptr) with_hash = &shard;
    if (vocabulary != 0 && vocabulary != with_vocabulary->vocabulary_size()) {
        throw std::runtime_error(with_vocabulary->path() + " and " + shard.path() +
                                 " have different vocabulary sizes, " +
                                 std::to_string(with_vocabulary->vocabulary_size()) + " and " +
                                 std::to_string(vocabulary) + "; prepare all shards with one tokenizer");
    }
    if (hash != 0 && hash != with_hash->tokenizer_hash()) {
        throw std::runtime_error(with_hash->path() + " and " + shard.path() + " have different tokenizers, " +
                                 hexadecimal(with_hash->tokenizer_hash()) + " and " + hexadecimal(hash) +
                                 "; prepare all shards with one tokenizer");
    }
}

void DataLoader::number_samples(const std::string& patterns) {
    const int64_t T = options_.sequence_length;
    int64_t longest = 0;
    first_sample_.assign(1, 0);
    for (const Shard& shard : shards_) {
        first_sample_.push_back(first_sample_.back() + (shard.token_count() - 1) / T);
        longest = std::max(longest, shard.token_count());
    }
    if (samples_per_epoch() > 0) return;
    throw std::runtime_error("'" + patterns + "' holds no sample: a sequence length of " + std::to_string(T) +
                             " needs " + std::to_string(T + 1) + " tokens in one shard, the longest of " +
                             std::to_string(shards_.size()) + " has " + std::to_string(longest) +
                             "; use a shorter sequence length or more data");
}

int64_t DataLoader::sample_at(int64_t position) const {
    const int64_t total = samples_per_epoch();
    const int64_t index = position % total;
    if (!options_.shuffle) return index;
    const Permutation permutation(static_cast<uint64_t>(total), options_.seed,
                                  static_cast<uint64_t>(position / total));
    return static_cast<int64_t>(permutation(static_cast<uint64_t>(index)));
}

// The shard that holds a sample and the sample's first token in it; O(log shards).
std::pair<const Shard*, int64_t> DataLoader::locate(int64_t sample) const {
    const auto next = std::upper_bound(first_sample_.begin(), first_sample_.end(), sample);
    const auto shard = static_cast<size_t>(next - first_sample_.begin() - 1);
    return {&shards_[shard], (sample - first_sample_[shard]) * options_.sequence_length};
}

// tokens becomes (count, T + 1). Runs on the prefetcher's thread; everything it reads is constant.
void DataLoader::read_samples(const Request& request, std::vector<int32_t>& tokens) const {
    const int64_t row = options_.sequence_length + 1;
    tokens.resize(static_cast<size_t>(request.count * row));
    // Announce all samples first: on a cold disk their reads then overlap.
    std::vector<std::pair<const Shard*, int64_t>> places;
    places.reserve(static_cast<size_t>(request.count));
    for (int64_t i = 0; i < request.count; ++i) {
        places.push_back(locate(sample_at(request.first + i)));
        if (options_.shuffle) places.back().first->will_need(places.back().second, row);
    }
    int32_t* out = tokens.data();
    for (const auto& [shard, begin] : places) {
        shard->copy(begin, row, options_.vocabulary_size, out);
        out += row;
    }
}

void DataLoader::next_batch(int64_t batch_size, int32_t* inputs, int32_t* targets) {
    if (batch_size < 1) {
        throw std::logic_error("DataLoader: batch size must be at least 1, got " +
                               std::to_string(batch_size));
    }
    const int64_t T = options_.sequence_length;
    const Request request{position_ + options_.rank * batch_size, batch_size};
    prefetcher_->take(request, batch_tokens_);
    position_ += options_.world_size * batch_size;
    prefetcher_->start({position_ + options_.rank * batch_size, batch_size});
    for (int64_t b = 0; b < batch_size; ++b) {
        const int32_t* sample = batch_tokens_.data() + b * (T + 1);
        std::copy_n(sample, T, inputs + b * T);
        std::copy_n(sample + 1, T, targets + b * T);
    }
}

void DataLoader::seek(int64_t position) {
    if (position < 0) {
        throw std::logic_error("DataLoader: cannot seek to the negative position " +
                               std::to_string(position));
    }
    position_ = position;
}

uint64_t DataLoader::fingerprint() const {
    uint64_t hash = mix_bits(static_cast<uint64_t>(options_.sequence_length));
    const auto add = [&hash](uint64_t value) { hash = mix_bits(hash ^ value); };
    add(options_.shuffle ? 1 : 0);
    add(options_.shuffle ? options_.seed : 0);
    for (const Shard& shard : shards_) {
        add(static_cast<uint64_t>(shard.token_count()));
        add(shard.tokenizer_hash());
        const int64_t ends = std::min<int64_t>(shard.token_count(), 16);
        for (int64_t i = 0; i < ends; ++i) {
            add(shard.token(i));
            add(shard.token(shard.token_count() - 1 - i));
        }
    }
    return hash;
}

}  // namespace train_qat
