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
    std::copy_n(text.begin(), 3000, book.begin());
    CHECK(shared_with(write("book.bin", book)).empty());
    // A few tokens say nothing, unless they are all.
    CHECK(shared_with(write("short.bin", {text.begin(), text.begin() + 31})).empty());
    const std::string tiny = write("tiny.bin", {1, 2, 3}), same = write("same.bin", {1, 2, 3});
    CHECK(find_shared_text({tiny}, {training[0], same}));
    CHECK_FALSE(find_shared_text({tiny}, {write("four.bin", {1, 2, 3, 4})}));
}

}  // namespace
}  // namespace train_qat::test
