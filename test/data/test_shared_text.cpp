// Shards that hold the same text under other names.
#include "data/shared_text.h"

#include <filesystem>
#include <random>

#include "test/support/catch.h"
#include "test/support/files.h"
#include "test/support/shards.h"

namespace train_qat::test {
namespace {

using Tokens = std::vector<uint32_t>;

Tokens random_tokens(size_t count, uint32_t seed) {
    std::mt19937 generator(seed);
    Tokens tokens(count);
    for (uint32_t& token : tokens) token = static_cast<uint32_t>(generator() % 500);
    return tokens;
}

TEST_CASE("shards that share text are found by what they hold", "[shared_text]") {
    const TemporaryDirectory directory;
    const auto write = [&](const char* name, const Tokens& tokens, uint32_t vocabulary = 500,
                           uint64_t hash = 1) {
        write_shard(directory / name, tokens, vocabulary, hash);
        return directory / name;
    };
    const Tokens text = random_tokens(9001, 1), other = random_tokens(9001, 2);
    const std::vector<std::string> training = {write("train_0.bin", other), write("train_1.bin", text)};
    const auto shared_with = [&](const std::string& path) {
        const auto shared = find_shared_text({path}, training);
        if (shared) CHECK(shared->first == path);
        return shared ? std::filesystem::path(shared->second).filename().string() : "";
    };
    CHECK(shared_with(training[0]) == "train_0.bin");
    CHECK(shared_with(write("copy.bin", text)) == "train_1.bin");
    CHECK(shared_with(write("wide.bin", text, 70000, 0)) == "train_1.bin");  // 32-bit tokens, another header
    CHECK(shared_with(write("cut.bin", {text.begin(), text.begin() + 777})) == "train_1.bin");
    CHECK(shared_with(write("end.bin", {text.end() - 5000, text.end()})) == "train_1.bin");
    Tokens longer = text;
    longer.insert(longer.end(), other.begin() + 100, other.begin() + 900);
    CHECK(shared_with(write("longer.bin", longer)) == "train_1.bin");
    Tokens changed = text;
    changed[5000] ^= 1;
    CHECK(shared_with(write("changed.bin", changed)) == "train_1.bin");
    std::filesystem::create_symlink(training[1], directory / "link.bin");
    CHECK(shared_with(directory / "link.bin") == "train_1.bin");

    CHECK(shared_with(write("apart.bin", random_tokens(9001, 3))).empty());
    // The same licence at the beginning of two books.
    Tokens book = random_tokens(9001, 4);
    std::copy_n(text.begin(), 2000, book.begin());
    CHECK(shared_with(write("book.bin", book)).empty());
    // A few tokens say nothing, unless they are all.
    CHECK(shared_with(write("short.bin", {text.begin(), text.begin() + 31})).empty());
    const std::string tiny = write("tiny.bin", {1, 2, 3}), same = write("same.bin", {1, 2, 3});
    CHECK(find_shared_text({tiny}, {training[0], same}));
    CHECK_FALSE(find_shared_text({tiny}, {write("four.bin", {1, 2, 3, 4})}));
}

// Tokens [begin, begin + count).
Tokens part(const Tokens& tokens, int64_t begin, int64_t count) {
    return {tokens.begin() + begin, tokens.begin() + begin + count};
}

TEST_CASE("shared text is found wherever it lies", "[shared_text]") {
    const TemporaryDirectory directory;
    const auto write = [&](const char* name, const Tokens& tokens) {
        write_shard(directory / name, tokens, 500, 1);
        return directory / name;
    };
    const Tokens text = random_tokens(120'000, 1), other = random_tokens(120'000, 2);
    const std::vector<std::string> training = {write("train_0.bin", other), write("train_1.bin", text)};
    const auto shared_with = [&](const char* name, const Tokens& tokens) {
        const auto shared = find_shared_text({write(name, tokens)}, training);
        return shared ? std::filesystem::path(shared->second).filename().string() : "";
    };
    CHECK(shared_with("middle.bin", part(text, 40'013, 30'000)) == "train_1.bin");
    CHECK(shared_with("short.bin", part(text, 77'777, 700)) == "train_1.bin");
    // Documents of both, in another order, between text of its own.
    const auto mixture = [&](int64_t of_shared) {
        Tokens mixed;
        for (int64_t i = 0; i < 40; ++i) {
            const Tokens& from = i % 3 == 0 ? other : text;
            const Tokens own = random_tokens(2000, 100 + static_cast<uint32_t>(i));
            const Tokens shared = part(from, 2000 * ((i * 17) % 50) + 11 * i, of_shared);
            mixed.insert(mixed.end(), own.begin(), own.end() - of_shared);
            mixed.insert(mixed.end(), shared.begin(), shared.end());
        }
        return mixed;
    };
    CHECK(shared_with("shuffled.bin", mixture(1200)) == "train_1.bin");
    CHECK(shared_with("licence.bin", mixture(200)).empty());  // a tenth
    CHECK(shared_with("apart.bin", random_tokens(30'000, 3)).empty());

    // A table of the same token, or a few, in both.
    const auto with_table = [&](uint32_t seed) {
        Tokens tokens = random_tokens(50'000, seed);
        for (size_t i = 1000; i < 40'000; ++i) tokens[i] = i % 5;
        return tokens;
    };
    const std::string table = write("table.bin", with_table(5));
    CHECK_FALSE(find_shared_text({write("other_table.bin", with_table(6))}, {table}));
    // One of several shards.
    const std::string apart = write("first.bin", random_tokens(300'000, 7));
    const auto second = find_shared_text({apart, directory / "middle.bin"}, training);
    REQUIRE(second);
    CHECK(second->first == directory / "middle.bin");
}

TEST_CASE("of much text evenly spaced pieces are searched", "[shared_text]") {
    const TemporaryDirectory directory;
    const auto write = [&](const std::string& name, const Tokens& tokens) {
        write_shard(directory / name, tokens, 500, 1);
        return directory / name;
    };
    std::vector<std::string> training;
    std::vector<Tokens> texts;
    for (uint32_t i = 0; i < 3; ++i) {
        texts.push_back(random_tokens(1'500'000, i));
        training.push_back(write("train_" + std::to_string(i), texts.back()));
    }
    constexpr int64_t most = 500'000;  // of 4.5 million
    const auto shared =
        find_shared_text({write("middle", part(texts[1], 300'001, 1'000'000))}, training, 2, most);
    REQUIRE(shared);
    CHECK(shared->second == training[1]);
    CHECK_FALSE(find_shared_text({write("apart", random_tokens(1'000'000, 9))}, training, 2, most));
    // A licence in a searched piece.
    Tokens book = random_tokens(20'000, 10);
    std::copy_n(texts[0].begin(), 15'000, book.begin() + 100);
    CHECK_FALSE(find_shared_text({write("book", book)}, training, 2, most));
    CHECK(find_shared_text({directory / "book"}, training));
}

}  // namespace
}  // namespace train_qat::test
