#include <sentencepiece_trainer.h>

#include <unordered_map>
#include <vector>

#include "data/text_stream.h"
#include "data/tokenizer.h"
#include "test/support/catch.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// A few hundred different words, enough for a small vocabulary.
std::vector<std::string> training_lines() {
    std::vector<std::string> lines;
    const char* syllables[] = {"ka", "lo", "mi", "re", "sun", "tor", "ve", "xi"};
    for (int i = 0; i < 400; ++i) {
        lines.push_back(std::string(syllables[i % 8]) + syllables[i / 8 % 8] + " " + syllables[i / 3 % 8] +
                        " the " + syllables[i / 5 % 8] + syllables[i / 7 % 8] + ".");
    }
    return lines;
}

// A byte-pair model with the settings of data/prepare.py.
std::string train_model(const TemporaryDirectory& directory, int vocabulary_size,
                        bool with_begin_and_end = true) {
    std::string text;
    for (const std::string& line : training_lines()) text += line + "\n";
    const std::string input = directory.write("text.txt", text);
    const std::string prefix = directory / "tokenizer";
    std::unordered_map<std::string, std::string> settings = {{"input", input},
                                                             {"model_prefix", prefix},
                                                             {"vocab_size", std::to_string(vocabulary_size)},
                                                             {"model_type", "bpe"},
                                                             {"byte_fallback", "true"},
                                                             {"normalization_rule_name", "identity"},
                                                             {"split_digits", "true"},
                                                             {"remove_extra_whitespaces", "false"},
                                                             {"allow_whitespace_only_pieces", "true"},
                                                             {"minloglevel", "2"}};
    if (!with_begin_and_end) settings.insert({{"bos_id", "-1"}, {"eos_id", "-1"}});
    const auto status = sentencepiece::SentencePieceTrainer::Train(settings);
    REQUIRE(status.ok());
    return prefix + ".model";
}

}  // namespace

TEST_CASE("tokenizer: encode and decode give the text back, whatever it holds", "[data]") {
    const TemporaryDirectory directory;
    const Tokenizer tokenizer(train_model(directory, 350));
    REQUIRE(tokenizer.vocabulary_size() == 350);
    REQUIRE(tokenizer.bos_id() == 1);
    REQUIRE(tokenizer.eos_id() == 2);
    const std::string texts[] = {"",
                                 "the",
                                 "kalo mi the torve.",
                                 "two  spaces   three",
                                 " leading",
                                 "trailing ",
                                 "line\nbreak\n\n\ttab\r\n",
                                 "1234567890",
                                 "naïve – 中文 🙂"};
    for (const std::string& text : texts) {
        const std::vector<int32_t> ids = tokenizer.encode(text);
        for (const int32_t id : ids) REQUIRE((id >= 3 && id < 350));  // no unknown, begin or end token
        REQUIRE(tokenizer.decode(ids) == text);
        int64_t bytes = 0;
        for (const int32_t id : ids) bytes += tokenizer.bytes_of(id);
        // With the space that SentencePiece puts before a text.
        REQUIRE(bytes == static_cast<int64_t>(text.size()) + (text.empty() ? 0 : 1));
    }
    // Merged pieces, not bytes: a word of the training text is short.
    REQUIRE(tokenizer.encode("kalo the").size() < 6);
    // What isn't in the vocabulary falls back to its bytes, and a newline is always one.
    REQUIRE(tokenizer.encode("🙂").size() >= 4);
    REQUIRE(tokenizer.encode("a\nb").size() == tokenizer.encode("ab").size() + 1);
}

TEST_CASE("tokenizer: begin and end tokens decode to nothing, ids outside are refused", "[data]") {
    const TemporaryDirectory directory;
    Tokenizer tokenizer(train_model(directory, 340));
    std::vector<int32_t> ids = tokenizer.encode("the sun");
    ids.insert(ids.begin(), tokenizer.bos_id());
    ids.push_back(tokenizer.eos_id());
    REQUIRE(tokenizer.decode(ids) == "the sun");
    REQUIRE_THAT(error_of([&] {
                     tokenizer.decode({5, 340});
                 }),
                 contains_text("340") && contains_text(".model"));
    REQUIRE_THAT(error_of([&] { tokenizer.decode({-1}); }), contains_text("id -1"));

    Tokenizer moved(std::move(tokenizer));
    REQUIRE(moved.decode(moved.encode("kalo")) == "kalo");
}

TEST_CASE("tokenizer: a model without begin and end tokens says so", "[data]") {
    const TemporaryDirectory directory;
    const Tokenizer tokenizer(train_model(directory, 340, false));
    REQUIRE(tokenizer.bos_id() == -1);
    REQUIRE(tokenizer.eos_id() == -1);
}

TEST_CASE("tokenizer: files that aren't models", "[data]") {
    const TemporaryDirectory directory;
    const auto error_for = [](const std::string& path) {
        return error_of([&] { Tokenizer tokenizer(path); });
    };
    REQUIRE_THAT(error_for(directory / "none.model"),
                 contains_text("none.model") && contains_text("No such file") && contains_text("prepare.py"));
    REQUIRE_THAT(error_for(directory / ""), contains_text("holds neither a tokenizer.json"));
    for (const std::string& bytes : {std::string(), std::string("plain text"), std::string(5000, '\xff')}) {
        const std::string error = error_for(directory.write("bad.model", bytes));
        REQUIRE_THAT(error, contains_text("bad.model") && contains_text("not a SentencePiece model"));
        REQUIRE(error.find('\n') == std::string::npos);
    }
}

TEST_CASE("tokenizer: a model that is cut short anywhere is refused", "[data]") {
    const TemporaryDirectory directory;
    const std::string whole = read_bytes(train_model(directory, 340, false));
    const auto error_for = [&](const std::string& bytes) {
        return error_of([path = directory.write("cut.model", bytes)] { Tokenizer tokenizer(path); });
    };
    REQUIRE(error_for(whole).empty());
    // Also between two fields, where it is a whole message, and SentencePiece takes it with other settings.
    for (size_t cut = 0; cut < whole.size(); cut += cut + 120 < whole.size() ? 37 : 1) {
        const std::string error = error_for(whole.substr(0, cut));
        CAPTURE(cut, error);
        REQUIRE_THAT(error, contains_text("cut.model") && contains_text("not a SentencePiece model"));
        REQUIRE(error.find('\n') == std::string::npos);
    }
}

TEST_CASE("tokenizer: a model with pieces that are not UTF-8 is refused", "[data]") {
    const TemporaryDirectory directory;
    std::string model = read_bytes(train_model(directory, 340));
    const size_t piece = model.find("ka");
    REQUIRE(piece != std::string::npos);
    model[piece + 1] = '\xee';
    REQUIRE_THAT(error_of([&] { Tokenizer(directory.write("odd.model", model)); }),
                 contains_text("odd.model") && contains_text("is not UTF-8"));
}

TEST_CASE("tokenizer: the hash is 64-bit FNV-1a", "[data]") {
    const TemporaryDirectory directory;
    // Published test vectors of the algorithm.
    REQUIRE(tokenizer_hash(directory.write("empty", "")) == 0xcbf29ce484222325u);
    REQUIRE(tokenizer_hash(directory.write("a", "a")) == 0xaf63dc4c8601ec8cu);
    REQUIRE(tokenizer_hash(directory.write("foobar", "foobar")) == 0x85944171f73967e8u);
    // Bytes from 128 on are unsigned; the same value is checked in test_prepare.py.
    REQUIRE(tokenizer_hash(directory.write("bytes", std::string("\x00\xff\x80\n", 4))) ==
            0xd865bb7bf628b7deu);
    REQUIRE_THAT(error_of([&] { tokenizer_hash(directory / "none.model"); }), contains_text("none.model"));
}

TEST_CASE("text comes out of tokens in whole characters, and all of it", "[data][text_stream]") {
    const TemporaryDirectory directory;
    const Tokenizer tokenizer(train_model(directory, 350));
    const auto continues = [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; };
    for (const std::string text :
         {"", "the", " leading", "kalo  mi the torve.\n", "naïve – 中文 🙂🙂", "🙂"}) {
        const std::vector<int32_t> ids = tokenizer.encode(text);
        for (size_t at_once : {1, 3}) {
            TextStream stream(tokenizer);
            std::string written;
            for (size_t i = 0; i < ids.size(); i += at_once) {
                const std::string piece =
                    stream.add({ids.begin() + i, ids.begin() + std::min(ids.size(), i + at_once)});
                CHECK((piece.empty() || !continues(piece[0])));
                CHECK(piece.find("\xEF\xBF\xBD") == std::string::npos);
                written += piece;
            }
            CHECK(stream.finish() == "");
            CHECK(written == text);
        }
        // A text that ends within a character: what is left of it comes at the end.
        TextStream stream(tokenizer);
        std::vector<int32_t> cut = ids;
        if (cut.size() > 1) cut.pop_back();
        std::string written;
        for (int32_t id : cut) written += stream.add({id});
        written += stream.finish();
        CHECK(written == tokenizer.decode(cut));
    }
}
