#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "data/loader.h"
#include "data/mix_bits.h"
#include "test/support/catch.h"
#include "test/support/files.h"
#include "test/support/shards.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr uint32_t vocabulary = 50000;

struct Sample {
    std::vector<int32_t> inputs, targets;
    auto operator<=>(const Sample&) const = default;
};

// Shards of the given lengths with globally distinct tokens, 0, 1, 2, …, so that a token tells where it was.
void write_counting_shards(const TemporaryDirectory& directory, const std::vector<int>& lengths) {
    uint32_t next = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
        std::vector<uint32_t> tokens(static_cast<size_t>(lengths[s]));
        std::iota(tokens.begin(), tokens.end(), next);
        next += static_cast<uint32_t>(lengths[s]);
        write_shard(directory / ("x_" + std::to_string(s) + ".bin"), tokens, vocabulary, 77);
    }
}

// All samples of such shards in order, by the definition: the oracle.
std::vector<Sample> all_samples(const std::vector<int>& lengths, int T) {
    std::vector<Sample> samples;
    int32_t first = 0;
    for (const int length : lengths) {
        for (int begin = 0; begin + T + 1 <= length; begin += T) {
            Sample sample;
            for (int t = 0; t < T; ++t) {
                sample.inputs.push_back(first + begin + t);
                sample.targets.push_back(first + begin + t + 1);
            }
            samples.push_back(sample);
        }
        first += length;
    }
    return samples;
}

std::vector<Sample> next_samples(DataLoader& loader, int B, int T) {
    std::vector<int32_t> inputs(static_cast<size_t>(B * T)), targets(inputs.size());
    loader.next_batch(B, inputs.data(), targets.data());
    std::vector<Sample> samples;
    for (int b = 0; b < B; ++b) {
        samples.push_back({{inputs.begin() + b * T, inputs.begin() + (b + 1) * T},
                           {targets.begin() + b * T, targets.begin() + (b + 1) * T}});
    }
    return samples;
}

// `count` samples, B at a time.
std::vector<Sample> read(DataLoader& loader, int64_t count, int B, int T) {
    std::vector<Sample> samples;
    while (static_cast<int64_t>(samples.size()) < count) {
        for (Sample& sample : next_samples(loader, B, T)) samples.push_back(std::move(sample));
    }
    samples.resize(static_cast<size_t>(count));
    return samples;
}

LoaderOptions options_for(int T, uint64_t seed = 1, bool shuffle = true) {
    LoaderOptions options;
    options.sequence_length = T;
    options.seed = seed;
    options.shuffle = shuffle;
    options.vocabulary_size = vocabulary;
    return options;
}

std::vector<Sample> sorted(std::vector<Sample> samples) {
    std::sort(samples.begin(), samples.end());
    return samples;
}

}  // namespace

TEST_CASE("loader: an epoch visits each sample exactly once, targets shifted by one, none across shards",
          "[data]") {
    struct Case {
        std::vector<int> lengths;
        int T;
    };
    const Case cases[] = {{{100}, 7},          {{29, 3, 41, 8}, 7},    {{8}, 7},
                          {{9, 1, 15}, 7},     {{50, 50, 50}, 1},      {{2}, 1},
                          {{64, 65, 129}, 64}, {{300, 1, 2, 3, 77}, 3}};
    for (const Case& each : cases) {
        const TemporaryDirectory directory;
        write_counting_shards(directory, each.lengths);
        const std::vector<Sample> expected = all_samples(each.lengths, each.T);
        const auto total = static_cast<int64_t>(expected.size());

        DataLoader sequential(directory / "*.bin", options_for(each.T, 1, false));
        REQUIRE(sequential.samples_per_epoch() == total);
        REQUIRE(read(sequential, total, 1, each.T) == expected);
        REQUIRE(read(sequential, total, 1, each.T) == expected);  // the next epoch

        for (const int B : {1, 2, 3}) {
            DataLoader loader(directory / "*.bin", options_for(each.T));
            const std::vector<Sample> read_samples = read(loader, 3 * total, B, each.T);
            for (int64_t epoch = 0; epoch < 3; ++epoch) {
                const auto begin = read_samples.begin() + epoch * total;
                REQUIRE(sorted({begin, begin + total}) == expected);
            }
        }
    }
}

TEST_CASE("loader: epochs and seeds differ, equal seeds don't", "[data]") {
    const TemporaryDirectory directory;
    write_counting_shards(directory, {211, 97});
    constexpr int T = 3;
    const auto sequence = [&](uint64_t seed) {
        DataLoader loader(directory / "*.bin", options_for(T, seed));
        return read(loader, 2 * loader.samples_per_epoch(), 1, T);
    };
    const std::vector<Sample> first = sequence(1);
    const auto half = static_cast<std::ptrdiff_t>(first.size() / 2);
    REQUIRE(std::vector<Sample>(first.begin(), first.begin() + half) !=
            std::vector<Sample>(first.begin() + half, first.end()));
    REQUIRE(std::vector<Sample>(first.begin(), first.begin() + half) != all_samples({211, 97}, T));
    REQUIRE(sequence(1) == first);
    REQUIRE(sequence(2) != first);
    REQUIRE(sequence(1ull << 40 | 1) != first);  // all 64 bits of the seed count
}

TEST_CASE("loader: the order for a seed is fixed, so that checkpoints stay valid between versions",
          "[data]") {
    const TemporaryDirectory directory;
    write_counting_shards(directory, {11});
    DataLoader loader(directory / "*.bin", options_for(1, 1234));
    std::vector<int32_t> order;
    for (const Sample& sample : read(loader, 20, 1, 1)) order.push_back(sample.inputs[0]);
    // Computed by a separate program from the description in permutation.h.
    REQUIRE(order == std::vector<int32_t>{4, 6, 3, 7, 0, 9, 5, 8, 2, 1, 2, 7, 5, 3, 1, 6, 8, 4, 0, 9});
}

TEST_CASE("loader: resuming at any position equals an uninterrupted run", "[data]") {
    const TemporaryDirectory directory;
    write_counting_shards(directory, {25, 4, 38, 13});
    constexpr int T = 4;
    for (const bool shuffle : {true, false}) {
        DataLoader whole(directory / "*.bin", options_for(T, 9, shuffle));
        const int64_t total = whole.samples_per_epoch();  // 6 + 0 + 9 + 3
        REQUIRE(total == 18);
        const std::vector<Sample> expected = read(whole, 3 * total, 1, T);
        DataLoader seeking(directory / "*.bin", options_for(T, 9, shuffle));
        for (int64_t position = 0; position <= 2 * total; ++position) {
            DataLoader fresh(directory / "*.bin", options_for(T, 9, shuffle));
            for (DataLoader* loader :
                 {&fresh, &seeking}) {  // a new process; and one in the middle of something else
                loader->seek(position);
                REQUIRE(loader->position() == position);
                const int B = 1 + static_cast<int>(position % 3);
                const std::vector<Sample> rest = read(*loader, 6, B, T);
                REQUIRE(std::equal(rest.begin(), rest.end(), expected.begin() + position));
            }
        }
    }
}

TEST_CASE("loader: the union over ranks doesn't depend on their number", "[data]") {
    const TemporaryDirectory directory;
    write_counting_shards(directory, {70, 33, 51});
    constexpr int T = 5;
    constexpr int64_t start = 7;
    for (const int world : {1, 2, 3, 4}) {
        constexpr int B = 2;
        DataLoader single(directory / "*.bin", options_for(T));
        single.seek(start);
        std::vector<std::unique_ptr<DataLoader>> ranks;
        for (int rank = 0; rank < world; ++rank) {
            LoaderOptions options = options_for(T);
            options.rank = rank;
            options.world_size = world;
            ranks.push_back(std::make_unique<DataLoader>(directory / "*.bin", options));
            ranks.back()->seek(start);
            REQUIRE(ranks.back()->fingerprint() == single.fingerprint());
        }
        for (int step = 0; step < 12; ++step) {  // across the end of an epoch of 29 samples
            std::vector<Sample> together;
            for (auto& loader : ranks) {
                for (Sample& sample : next_samples(*loader, B, T)) together.push_back(std::move(sample));
                REQUIRE(loader->position() == start + (step + 1) * world * B);
            }
            REQUIRE(together == next_samples(single, world * B, T));
        }
    }
}

TEST_CASE("loader: batch size may change between calls, seek discards what was read ahead", "[data]") {
    const TemporaryDirectory directory;
    write_counting_shards(directory, {400});
    constexpr int T = 3;
    DataLoader loader(directory / "*.bin", options_for(T, 4));
    const std::vector<Sample> expected = read(loader, 3 * loader.samples_per_epoch(), 1, T);
    uint64_t random = 1;
    loader.seek(0);
    for (int i = 0; i < 500; ++i) {
        random = mix_bits(random);
        if (random % 4 == 0) loader.seek(static_cast<int64_t>(random >> 8) % 300 & 255);
        const int B = 1 + static_cast<int>(random >> 4 & 7);
        const int64_t position = loader.position() % (2 * loader.samples_per_epoch());
        loader.seek(position);
        const std::vector<Sample> batch = next_samples(loader, B, T);
        REQUIRE(std::equal(batch.begin(), batch.end(), expected.begin() + position));
    }
}

TEST_CASE("loader: a bad token surfaces when its batch is asked for, and only then", "[data]") {
    const TemporaryDirectory directory;
    std::vector<uint32_t> tokens(41, 3);
    tokens[26] = 999;  // samples of T = 4 at 0, 4, …: the one at 24 holds it
    write_shard(directory / "bad.bin", tokens, 0, 0);
    LoaderOptions options = options_for(4, 1, false);
    options.vocabulary_size = 100;
    DataLoader loader(directory / "bad.bin", options);
    std::vector<int32_t> inputs(8), targets(8);
    for (int step = 0; step < 3; ++step) loader.next_batch(2, inputs.data(), targets.data());
    for (int attempt = 0; attempt < 2; ++attempt) {  // the batch was prefetched; a retry fails the same way
        const std::string error = error_of([&] { loader.next_batch(2, inputs.data(), targets.data()); });
        REQUIRE_THAT(error, contains_text(directory / "bad.bin") && contains_text("token 26 ") &&
                                contains_text("id 999") && contains_text("100"));
        REQUIRE(loader.position() == 6);
    }
    loader.seek(8);
    REQUIRE_NOTHROW(loader.next_batch(2, inputs.data(), targets.data()));
    // A bad batch that is read ahead but never asked for harms nobody.
    loader.seek(4);
    REQUIRE_NOTHROW(loader.next_batch(2, inputs.data(), targets.data()));
}

TEST_CASE("loader: too little data, or shards that don't belong together", "[data]") {
    const TemporaryDirectory directory;
    const std::vector<uint32_t> tokens(10, 1);
    const auto shard = [&](const std::string& name, uint32_t vocabulary_size, uint64_t hash) {
        write_shard(directory / name, tokens, vocabulary_size, hash);
        return directory / name;
    };
    const auto error_for = [&](const std::string& patterns, LoaderOptions options) {
        return error_of([&] { DataLoader loader(patterns, options); });
    };
    const std::string a = shard("a.bin", 500, 1), b = shard("b.bin", 600, 1), c = shard("c.bin", 500, 2),
                      unknown = shard("d.bin", 0, 0), wide = shard("e.bin", 70000, 1);
    const LoaderOptions options = options_for(4);

    REQUIRE_THAT(error_for(a, options_for(10)), contains_text("sequence length of 10") &&
                                                    contains_text("11 tokens") && contains_text("has 10"));
    REQUIRE(error_for(a, options_for(9)).empty());
    REQUIRE_THAT(error_for(a + "," + b, options), contains_text(a) && contains_text(b) &&
                                                      contains_text("500") && contains_text("600") &&
                                                      contains_text("vocabulary"));
    REQUIRE_THAT(error_for(a + "," + c, options), contains_text(a) && contains_text(c) &&
                                                      contains_text("tokenizers") &&
                                                      contains_text("0x0000000000000002"));
    REQUIRE(error_for(a + "," + unknown, options).empty());
    REQUIRE_THAT(error_for(unknown + "," + b + "," + c, options), contains_text(b) && contains_text(c));

    REQUIRE_THAT(error_for(wide, options),
                 contains_text(wide) && contains_text("70000") && contains_text("50000"));
    LoaderOptions exact = options;
    exact.vocabulary_size = 500;
    REQUIRE(error_for(a, exact).empty());
    exact.vocabulary_size = 499;
    REQUIRE_THAT(error_for(a, exact), contains_text("500") && contains_text("499"));

    LoaderOptions hashed = options;
    hashed.expected_tokenizer_hash = 2;
    REQUIRE(error_for(c, hashed).empty());
    REQUIRE(error_for(unknown, hashed).empty());
    REQUIRE_THAT(error_for(a, hashed), contains_text(a) && contains_text("0x0000000000000001") &&
                                           contains_text("0x0000000000000002"));
}

TEST_CASE("loader: broken options are our own mistakes", "[data]") {
    const TemporaryDirectory directory;
    write_counting_shards(directory, {10});
    const auto build = [&](auto change) {
        LoaderOptions options = options_for(4);
        change(options);
        DataLoader loader(directory / "*.bin", options);
    };
    REQUIRE_THROWS_AS(build([](LoaderOptions& o) { o.sequence_length = 0; }), std::logic_error);
    REQUIRE_THROWS_AS(build([](LoaderOptions& o) { o.rank = 1; }), std::logic_error);
    REQUIRE_THROWS_AS(build([](LoaderOptions& o) { o.rank = -1; }), std::logic_error);
    REQUIRE_THROWS_AS(build([](LoaderOptions& o) { o.world_size = 0; }), std::logic_error);
    REQUIRE_THROWS_AS(build([](LoaderOptions& o) { o.vocabulary_size = 0; }), std::logic_error);
    DataLoader loader(directory / "*.bin", options_for(4));
    int32_t inputs[4], targets[4];
    REQUIRE_THROWS_AS(loader.next_batch(0, inputs, targets), std::logic_error);
    REQUIRE_THROWS_AS(loader.seek(-1), std::logic_error);
}

TEST_CASE("loader: the fingerprint changes with whatever changes the meaning of a position", "[data]") {
    const TemporaryDirectory directory;
    write_counting_shards(directory, {40, 50});
    const auto fingerprint = [&](const std::string& pattern, const LoaderOptions& options) {
        return DataLoader(directory / pattern, options).fingerprint();
    };
    const uint64_t base = fingerprint("*.bin", options_for(4));
    REQUIRE(fingerprint("*.bin", options_for(4)) == base);
    REQUIRE(fingerprint("*.bin", options_for(5)) != base);
    REQUIRE(fingerprint("*.bin", options_for(4, 2)) != base);
    REQUIRE(fingerprint("*.bin", options_for(4, 1, false)) != base);
    REQUIRE(fingerprint("*.bin", options_for(4, 2, false)) == fingerprint("*.bin", options_for(4, 1, false)));
    REQUIRE(fingerprint("x_0.bin", options_for(4)) != base);

    std::filesystem::create_directory(directory / "moved");  // the same data elsewhere is the same data
    for (const char* name : {"x_0.bin", "x_1.bin"}) {
        std::filesystem::copy(directory / name, directory / "moved/" + name);
    }
    REQUIRE(fingerprint("moved/*.bin", options_for(4)) == base);
    std::vector<uint32_t> other(50, 7);  // the same size, other tokens
    std::filesystem::remove(directory / "moved/x_1.bin");
    write_shard(directory / "moved/x_1.bin", other, vocabulary, 77);
    REQUIRE(fingerprint("moved/*.bin", options_for(4)) != base);
}

TEST_CASE("loader: samples far inside a shard over 2 GiB", "[data]") {
    const TemporaryDirectory directory;
    constexpr int64_t count = 1'300'000'000;
    constexpr int T = 1024;
    // A one-token shard gives the header; then its count is patched and the file grown by a hole.
    const std::vector<uint32_t> one = {0};
    const std::string path = directory / "large.bin";
    write_shard(path, one, vocabulary, 0);
    {
        std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
        const auto declared = static_cast<int32_t>(count);
        file.seekp(8);
        file.write(reinterpret_cast<const char*>(&declared), 4);
        const int64_t last_sample = (count - 1) / T - 1;
        file.seekp(shard_header_bytes + 2 * last_sample * T);
        for (uint16_t value = 1; value <= T + 1; ++value)
            file.write(reinterpret_cast<const char*>(&value), 2);
    }
    REQUIRE(::truncate(path.c_str(), shard_header_bytes + 2 * count) == 0);

    DataLoader loader(path, options_for(T, 0, false));
    REQUIRE(loader.samples_per_epoch() == (count - 1) / T);
    loader.seek(loader.samples_per_epoch() - 1);
    const std::vector<Sample> samples = next_samples(loader, 2, T);
    REQUIRE(samples[0].inputs.front() == 1);
    REQUIRE(samples[0].inputs.back() == T);
    REQUIRE(samples[0].targets.back() == T + 1);
    REQUIRE(samples[1].inputs == std::vector<int32_t>(T, 0));
}
