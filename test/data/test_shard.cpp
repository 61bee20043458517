#include <fcntl.h>
#include <unistd.h>

#include <vector>

#include "data/shard.h"
#include "test/support/catch.h"
#include "test/support/files.h"
#include "test/support/shards.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

std::string open_error(const std::string& path) {
    return error_of([&] { Shard shard(path); });
}

// A sparse file of header, a hole, and `last` at the very end.
template <typename Token>
std::string write_sparse_shard(const TemporaryDirectory& directory, const std::string& header,
                               int64_t token_count, const std::vector<Token>& last) {
    const std::string path = directory.write("sparse.bin", header);
    const int64_t bytes = shard_header_bytes + token_count * static_cast<int64_t>(sizeof(Token));
    const int file = ::open(path.c_str(), O_WRONLY);
    const std::string tail = token_bytes(last);
    REQUIRE(::ftruncate(file, bytes) == 0);
    REQUIRE(::pwrite(file, tail.data(), tail.size(), bytes - static_cast<int64_t>(tail.size())) ==
            static_cast<ssize_t>(tail.size()));
    ::close(file);
    return path;
}

}  // namespace

TEST_CASE("shard: reads llm.c's own files, which leave the other header slots zero", "[data]") {
    const TemporaryDirectory directory;
    SECTION("uint16") {
        const std::vector<uint16_t> tokens = {50256, 0, 65535, 7, 12};
        const Shard shard(directory.write("gpt2.bin", header_bytes({20240520, 1, 5}) + token_bytes(tokens)));
        REQUIRE(shard.token_count() == 5);
        REQUIRE(shard.bytes_per_token() == 2);
        REQUIRE(shard.vocabulary_size() == 0);
        REQUIRE(shard.tokenizer_hash() == 0);
        for (size_t i = 0; i < tokens.size(); ++i) REQUIRE(shard.token(static_cast<int64_t>(i)) == tokens[i]);
    }
    SECTION("uint32") {
        const std::vector<uint32_t> tokens = {128000, 0, 65536, 4294967295u};
        const Shard shard(
            directory.write("llama3.bin", header_bytes({20240801, 7, 4}) + token_bytes(tokens)));
        REQUIRE(shard.token_count() == 4);
        REQUIRE(shard.bytes_per_token() == 4);
        for (size_t i = 0; i < tokens.size(); ++i) REQUIRE(shard.token(static_cast<int64_t>(i)) == tokens[i]);
    }
}

TEST_CASE("shard: vocabulary size and tokenizer hash are read from the header", "[data]") {
    const TemporaryDirectory directory;
    for (const uint32_t vocabulary : {0u, 4096u, 65536u, 65537u}) {
        const std::vector<uint32_t> tokens = {4095, 0, 1, 2, 17};
        const std::string path = directory / ("v" + std::to_string(vocabulary) + ".bin");
        write_shard(path, tokens, vocabulary, 0xfedcba9876543210u);
        const Shard shard(path);
        REQUIRE(shard.vocabulary_size() == vocabulary);
        REQUIRE(shard.tokenizer_hash() == 0xfedcba9876543210u);
        REQUIRE(shard.bytes_per_token() == (vocabulary > 65536 ? 4 : 2));
    }
}

TEST_CASE("shard: copies of every range equal the tokens", "[data]") {
    const TemporaryDirectory directory;
    for (const uint32_t vocabulary : {1000u, 100000u}) {
        std::vector<uint32_t> tokens(67);
        for (size_t i = 0; i < tokens.size(); ++i)
            tokens[i] = static_cast<uint32_t>(i * i * 7919 % vocabulary);
        const std::string path = directory / (std::to_string(vocabulary) + ".bin");
        write_shard(path, tokens, vocabulary, 1);
        const Shard shard(path);
        for (int64_t begin = 0; begin <= 67; ++begin) {
            for (int64_t count = 0; begin + count <= 67; ++count) {
                std::vector<int32_t> copied(static_cast<size_t>(count) + 1, -5);
                shard.will_need(begin, count);
                shard.copy(begin, count, vocabulary, copied.data());
                REQUIRE(std::equal(copied.begin(), copied.end() - 1, tokens.begin() + begin));
                REQUIRE(copied.back() == -5);  // nothing is written past the range
            }
        }
        int32_t out[2];
        REQUIRE_THROWS_AS(shard.copy(-1, 1, vocabulary, out), std::out_of_range);
        REQUIRE_THROWS_AS(shard.copy(66, 2, vocabulary, out), std::out_of_range);
        REQUIRE_THROWS_AS(shard.copy(0, -1, vocabulary, out), std::out_of_range);
        REQUIRE_THROWS_AS(shard.copy(1, INT64_MAX, vocabulary, out), std::out_of_range);
        REQUIRE_THROWS_AS(shard.token(67), std::out_of_range);
        REQUIRE_THROWS_AS(shard.token(-1), std::out_of_range);
    }
}

TEST_CASE("shard: an id outside the vocabulary is reported with file and position", "[data]") {
    const TemporaryDirectory directory;
    for (const uint32_t vocabulary : {0u, 70000u}) {
        const std::string path = directory / (std::to_string(vocabulary) + ".bin");
        std::vector<uint32_t> tokens(50, 5);
        tokens[31] = 100;
        tokens[40] = 200;
        write_shard(path, tokens, vocabulary, 0);
        const Shard shard(path);
        std::vector<int32_t> out(50);
        REQUIRE_NOTHROW(shard.copy(0, 31, 100, out.data()));
        REQUIRE_NOTHROW(shard.copy(32, 8, 100, out.data()));
        REQUIRE_NOTHROW(shard.copy(0, 50, 201, out.data()));
        const std::string error = error_of([&] { shard.copy(20, 30, 100, out.data()); });
        REQUIRE_THAT(error, contains_text(path) && contains_text("token 31 ") && contains_text("id 100") &&
                                contains_text("has 100 ids"));
        REQUIRE_THAT(error_of([&] { shard.copy(32, 18, 200, out.data()); }), contains_text("token 40 "));
    }
    // Ids from 2^31 on would turn negative as int32, so they are refused whatever the limit says.
    const std::vector<uint32_t> huge = {1, 1u << 31};
    const Shard shard(directory.write("huge.bin", header_bytes({20240801, 7, 2}) + token_bytes(huge)));
    int32_t out[2];
    REQUIRE_THAT(error_of([&] { shard.copy(0, 2, UINT32_MAX, out); }),
                 contains_text("token 1 has id 2147483648"));
}

TEST_CASE("shard: files over 2 and 4 GiB are read at their far end", "[data]") {
    const TemporaryDirectory directory;
    SECTION("uint16, 2.4 GB") {
        const int64_t count = 1'200'000'001;
        const std::string path = write_sparse_shard<uint16_t>(
            directory, header_bytes({20240520, 1, static_cast<int32_t>(count)}), count, {11, 22, 33});
        const Shard shard(path);
        REQUIRE(shard.token_count() == count);
        REQUIRE(shard.token(count - 1) == 33);
        int32_t out[4] = {};
        shard.will_need(count - 4, 4);
        shard.copy(count - 4, 4, 50257, out);
        REQUIRE(out[0] == 0);
        REQUIRE(out[1] == 11);
        REQUIRE(out[2] == 22);
        REQUIRE(out[3] == 33);
        REQUIRE_THAT(error_of([&] { shard.copy(count - 2, 2, 33, out); }),
                     contains_text("token 1200000000 has id 33"));
    }
    SECTION("uint32, the most tokens a header can declare, 8.6 GB") {
        const int64_t count = INT32_MAX;
        const std::string path = write_sparse_shard<uint32_t>(
            directory, header_bytes({20240801, 7, INT32_MAX}), count, {128255, 90000});
        const Shard shard(path);
        REQUIRE(shard.token_count() == count);
        REQUIRE(shard.token(count - 2) == 128255);
        REQUIRE(shard.token(count - 1) == 90000);
    }
}

TEST_CASE("shard: files that aren't shards are refused with what they are", "[data]") {
    const TemporaryDirectory directory;
    const auto error_for = [&](const std::string& bytes) {
        const std::string path = directory.write("file.bin", bytes);
        const std::string error = open_error(path);
        REQUIRE_THAT(error, contains_text(path));
        REQUIRE(error.find('\n') == std::string::npos);
        return error;
    };
    const std::string padding(2000, '\0');
    REQUIRE_THAT(error_for(""),
                 contains_text("too short") && contains_text("0 bytes") && contains_text("1024"));
    REQUIRE_THAT(error_for("hi"), contains_text("too short") && contains_text("2 bytes"));
    REQUIRE_THAT(error_for(header_bytes({20240520, 1, 5}).substr(0, 1023)),
                 contains_text("too short") && contains_text("1023"));
    REQUIRE_THAT(error_for("It is a truth universally acknowledged, that"), contains_text("looks like text"));
    REQUIRE_THAT(error_for(header_bytes({20240522, 1, 3}) + padding), contains_text("HellaSwag"));
    REQUIRE_THAT(error_for("BIN.TOK\n" + padding), contains_text("llmq"));
    REQUIRE_THAT(error_for("GGUF" + padding), contains_text("GGUF"));
    REQUIRE_THAT(error_for(std::string("\x08\x01\0\0\0\0\0\0{\"model.norm\"", 21) + padding),
                 contains_text("safetensors"));
    REQUIRE_THAT(error_for(header_bytes({12345, 1, 3}) + padding),
                 contains_text("magic 12345") && contains_text("20240520") && contains_text("20240801"));
    REQUIRE_THAT(error_for(std::string("\x01\x34\xd8\x88", 4) + padding), contains_text("big-endian"));
}

TEST_CASE("shard: damaged shards are refused with numbers", "[data]") {
    const TemporaryDirectory directory;
    const auto error_for = [&](std::initializer_list<int32_t> header, size_t bytes) {
        const std::string path = directory.write("file.bin", header_bytes(header) + std::string(bytes, '\1'));
        const std::string error = open_error(path);
        REQUIRE_THAT(error, contains_text(path));
        return error;
    };
    REQUIRE_THAT(error_for({20240520, 2, 3}, 6), contains_text("version 2") && contains_text("version 1"));
    REQUIRE_THAT(error_for({20240520, 7, 3}, 6), contains_text("version 7"));
    REQUIRE_THAT(error_for({20240801, 1, 3}, 12), contains_text("version 1") && contains_text("version 7"));
    REQUIRE_THAT(error_for({20240520, 1, 0}, 0), contains_text("zero tokens"));
    REQUIRE_THAT(error_for({20240520, 1, -4}, 8), contains_text("declares -4 tokens"));
    REQUIRE_THAT(error_for({20240520, 1, 10}, 19),
                 contains_text("truncated") && contains_text("1044") && contains_text("1043"));
    REQUIRE_THAT(error_for({20240520, 1, 10}, 21),
                 contains_text("trailing") && contains_text("1044") && contains_text("1045"));
    REQUIRE_THAT(error_for({20240801, 7, 10}, 20),
                 contains_text("truncated") && contains_text("1064") && contains_text("1044"));
    REQUIRE_THAT(error_for({20240801, 7, INT32_MAX}, 20), contains_text("8589935612"));
    REQUIRE_NOTHROW(
        Shard(directory.write("file.bin", header_bytes({20240520, 1, 10}) + std::string(20, '\1'))));
}

TEST_CASE("shard: paths that can't be opened", "[data]") {
    const TemporaryDirectory directory;
    REQUIRE_THAT(open_error(directory / "none.bin"),
                 contains_text("none.bin") && contains_text("No such file"));
    REQUIRE_THAT(open_error(directory / ""), contains_text("regular file") || contains_text("directory"));
}

TEST_CASE("shard: moves leave one owner", "[data]") {
    const TemporaryDirectory directory;
    const std::vector<uint32_t> a = {1, 2, 3}, b = {4, 5};
    write_shard(directory / "a.bin", a, 10, 1);
    write_shard(directory / "b.bin", b, 10, 2);
    Shard first(directory / "a.bin");
    Shard second(directory / "b.bin");
    Shard third(std::move(first));
    REQUIRE(third.token(2) == 3);
    third = std::move(second);
    REQUIRE(third.token(1) == 5);
    REQUIRE(third.path() == directory / "b.bin");
    REQUIRE(third.tokenizer_hash() == 2);
}
