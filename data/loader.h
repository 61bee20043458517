// Batches of token sequences from shards (data/shard.h), shuffled, resumable and split over ranks.
//
// Sample i of a shard is its tokens [i*T, i*T + T]: T inputs, and the same shifted by one as targets. It
// never crosses into another shard, so a shard of n tokens holds (n - 1) / T samples. Samples are numbered
// through all shards, 0 … samples_per_epoch() - 1.
//
// Everything the loader does is a function of one number, the global sample position p, which counts samples
// over all ranks and epochs: p belongs to epoch p / samples_per_epoch(), and within the epoch to the sample
// permutation(p % samples_per_epoch()), where the permutation is keyed by (seed, epoch) and takes constant
// memory. So every epoch visits each sample exactly once, and saving position() is all a checkpoint needs.
//
// One call of next_batch on each of W ranks consumes the next W*B positions: rank r gets
// [p + r*B, p + r*B + B). The union over ranks doesn't depend on W, so training resumes exactly on another
// number of ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/shard.h"

namespace train_qat {

struct LoaderOptions {
    int64_t sequence_length = 1024;        // T
    uint64_t seed = 0;                     // of the shuffle
    bool shuffle = true;                   // false: in the order of the sorted files (validation)
    int rank = 0;                          // of this process, in [0, world_size)
    int world_size = 1;                    // number of data-parallel processes
    uint32_t vocabulary_size = 0;          // the model's; every token id must be below it (required)
    uint64_t expected_tokenizer_hash = 0;  // 0: any tokenizer, but the same one in all shards
};

class DataLoader {
  public:
    // patterns: a path, a glob, or several of them separated by commas; the files are sorted by path, and one
    // that is matched twice is read once. Throws std::runtime_error if a pattern matches nothing, a file
    // isn't a valid shard, shards disagree with each other or with the options about the tokenizer, or no
    // shard holds a sample; std::logic_error if the options themselves make no sense.
    DataLoader(const std::string& patterns, const LoaderOptions& options);
    ~DataLoader();
    DataLoader(const DataLoader&) = delete;
    DataLoader& operator=(const DataLoader&) = delete;

    // Fills inputs and targets, (B, T) each, with this rank's next B = batch_size samples and advances
    // position() by world_size * B. Afterwards a background thread prepares the batch after it, so that a
    // call of the same batch size finds it ready. Throws std::runtime_error naming the file and the token if
    // an id isn't below the vocabulary size; the position then stays where it was.
    void next_batch(int64_t batch_size, int32_t* inputs, int32_t* targets);

    // The global sample position: the same on all ranks. Seek takes effect with the next call of next_batch.
    int64_t position() const { return position_; }
    void seek(int64_t position);

    int64_t samples_per_epoch() const { return first_sample_.back(); }

    // Identifies what a position means: the shards' sizes, tokenizer and first and last tokens, T, seed and
    // shuffle; not the paths, the rank or the world size. A position saved with another fingerprint continues
    // elsewhere in the data.
    uint64_t fingerprint() const;

    // The number, in [0, samples_per_epoch()), of the sample that is read at a global sample position.
    int64_t sample_at(int64_t position) const;

  private:
    class Prefetcher;
    // What the prefetcher is asked for: samples at positions [first, first + count).
    struct Request {
        int64_t first = 0;
        int64_t count = 0;
        bool operator==(const Request&) const = default;
    };

    void open_shards(const std::string& patterns);
    void check_tokenizer(const Shard& shard, const Shard*& with_vocabulary, const Shard*& with_hash);
    void number_samples(const std::string& patterns);
    std::pair<const Shard*, int64_t> locate(int64_t sample) const;
    void read_samples(const Request& request, std::vector<int32_t>& tokens) const;

    LoaderOptions options_;
    std::vector<Shard> shards_;
    std::vector<int64_t> first_sample_;  // (shards + 1): number of each shard's first sample; then the total
    int64_t position_ = 0;
    std::vector<int32_t> batch_tokens_;  // (B, T + 1): the batch being handed out
    std::unique_ptr<Prefetcher> prefetcher_;
};

}  // namespace train_qat
