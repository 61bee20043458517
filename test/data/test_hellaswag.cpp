#include <cstring>
#include <random>
#include <vector>

#include "data/hellaswag.h"
#include "test/support/catch.h"
#include "test/support/files.h"
#include "test/support/shards.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr int64_t vocabulary = 700;

HellaswagExample drawn_example(std::mt19937& random) {
    const auto tokens = [&] {
        std::vector<int32_t> result(1 + random() % 9);
        for (int32_t& token : result) token = static_cast<int32_t>(random() % vocabulary);
        return result;
    };
    return {tokens(), {tokens(), tokens(), tokens(), tokens()}, static_cast<int64_t>(random() % 4)};
}

// As uint16.
std::vector<uint16_t> words(const HellaswagExample& example, uint16_t index) {
    std::vector<uint16_t> result = {65535, 0, index, static_cast<uint16_t>(example.label), 4};
    const auto append = [&](const std::vector<int32_t>& tokens) {
        result.push_back(static_cast<uint16_t>(tokens.size()));
        result.insert(result.end(), tokens.begin(), tokens.end());
    };
    append(example.context);
    for (const std::vector<int32_t>& completion : example.completions) append(completion);
    result[1] = static_cast<uint16_t>(2 * result.size());
    return result;
}

std::string bytes_of(const std::vector<HellaswagExample>& examples, int32_t of_tokenizer = 0) {
    std::string result =
        header_bytes({20240522, 1, static_cast<int32_t>(examples.size()), 200, of_tokenizer});
    for (size_t i = 0; i < examples.size(); ++i)
        result += token_bytes(words(examples[i], static_cast<uint16_t>(i)));
    return result;
}

// Without the path that it must begin with.
std::string error_for(const std::string& bytes) {
    const TemporaryDirectory directory;
    const std::string path = directory.write("h.bin", bytes);
    const std::string error = error_of([&] { read_hellaswag(path, vocabulary); });
    if (error.empty()) return error;
    REQUIRE(error.rfind(path + ": ", 0) == 0);
    REQUIRE(error.find('\n') == std::string::npos);
    return error.substr(path.size() + 2);
}

}  // namespace

TEST_CASE("hellaswag: examples are read as they were written", "[data][hellaswag]") {
    const unsigned seed = std::random_device()();
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::vector<HellaswagExample> examples;
    for (int i = 0; i < 30; ++i) examples.push_back(drawn_example(random));
    const TemporaryDirectory directory;
    const std::vector<HellaswagExample> read =
        read_hellaswag(directory.write("h.bin", bytes_of(examples, vocabulary)), vocabulary);
    REQUIRE(read.size() == examples.size());
    for (size_t i = 0; i < read.size(); ++i) {
        CHECK(read[i].context == examples[i].context);
        CHECK(read[i].completions == examples[i].completions);
        CHECK(read[i].label == examples[i].label);
    }
}

TEST_CASE("hellaswag: files cut off anywhere, or with bytes behind, are refused", "[data][hellaswag]") {
    std::mt19937 random(std::random_device{}());
    const std::string bytes = bytes_of({drawn_example(random), drawn_example(random)});
    CHECK(error_for(bytes).empty());
    for (size_t length = 0; length < bytes.size(); length += length < 1020 ? 51 : 1) {
        CAPTURE(length);
        CHECK(!error_for(bytes.substr(0, length)).empty());
    }
    CHECK_THAT(error_for(bytes + "xy"), contains_text("2 bytes behind its last example"));
}

TEST_CASE("hellaswag: what a file can have wrong is named", "[data][hellaswag]") {
    std::mt19937 random(std::random_device{}());
    const HellaswagExample example = drawn_example(random);
    const auto changed = [&](size_t place, uint16_t value) {  // the place counts in uint16 behind the header
        std::string bytes = bytes_of({example, example});
        std::memcpy(bytes.data() + 1024 + 2 * place, &value, 2);
        return error_for(bytes);
    };
    CHECK_THAT(changed(0, 7), contains_text("example 0 does not begin with 65535"));
    CHECK_THAT(changed(1, 8), contains_text("declares 8"));
    CHECK_THAT(changed(3, 4), contains_text("label 4, expected 0 to 3"));
    CHECK_THAT(changed(4, 3), contains_text("3 completions, expected 4"));
    CHECK_THAT(changed(5, 0), contains_text("a context without tokens"));
    CHECK_THAT(changed(6, vocabulary), contains_text("a token 700, the model's vocabulary 700"));
    CHECK_THAT(error_for(header_bytes({20240520, 1, 3})), contains_text("is no HellaSwag file"));
    CHECK_THAT(error_for(header_bytes({20240522, 2, 3})), contains_text("version 2"));
    CHECK_THAT(error_for(header_bytes({20240522, 1, 0})), contains_text("declares 0 examples"));
    CHECK_THAT(error_for(bytes_of({example}, vocabulary + 1)),
               contains_text("prepared with a vocabulary of 701"));
    CHECK_THAT(error_of([] { read_hellaswag("/nothing.bin", 1); }),
               contains_text("cannot read the HellaSwag file"));
}
