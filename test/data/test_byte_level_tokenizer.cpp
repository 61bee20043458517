// tokenizer.json as Hugging Face has it. test/clients compares with its own library.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "test/support/catch.h"
#include "test/support/errors.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;
using nlohmann::json;

namespace {

using Ids = std::vector<int32_t>;

// UTF-8 of the character that stands for a byte in such files.
std::string written(int byte) {
    static const std::vector<int> codes = [] {
        std::vector<int> result;
        int next = 256;
        for (int b = 0; b < 256; ++b) {
            const bool prints = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
            result.push_back(prints ? b : next++);
        }
        return result;
    }();
    const int code = codes[byte];
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

std::string written(const std::string& bytes) {
    std::string text;
    for (const char c : bytes) text += written(static_cast<unsigned char>(c));
    return text;
}

// Token b is byte b; then the merges' results; then <end> and <note>.
json tokenizer_file_with(const std::vector<std::pair<std::string, std::string>>& merges) {
    json vocab, list = json::array();
    for (int b = 0; b < 256; ++b) vocab[written(b)] = b;
    for (const auto& [left, right] : merges) {
        vocab[written(left + right)] = vocab.size();
        list.push_back(written(left) + " " + written(right));
    }
    const int next = static_cast<int>(vocab.size());
    return {{"added_tokens",
             {{{"id", next}, {"content", "<end>"}, {"special", true}},
              {{"id", next + 1}, {"content", "<note>"}, {"special", false}}}},
            {"normalizer", nullptr},
            {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
            {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}};
}

const std::vector<std::pair<std::string, std::string>> merges = {
    {"l", "o"}, {" ", "t"}, {"lo", "lo"}, {"o", "l"}, {"\xc3", "\xa9"}};
constexpr int32_t lo = 256, space_t = 257, lolo = 258, e_acute = 260, end_token = 261, note_token = 262;

std::string error_of_file(const TemporaryDirectory& directory, const json& file) {
    const std::string path = directory.write("tokenizer.json", file.dump());
    return error_of([&] { Tokenizer{path}; });
}

}  // namespace

TEST_CASE("byte-level: earlier merges go first, words apart, whatever bytes there are", "[data]") {
    const TemporaryDirectory directory;
    const Tokenizer tokenizer(directory.write("tokenizer.json", tokenizer_file_with(merges).dump()));
    CHECK(tokenizer.vocabulary_size() == 263);
    CHECK(tokenizer.bos_id() == -1);
    CHECK(tokenizer.encode("").empty());
    CHECK(tokenizer.encode("lolo") == Ids{lolo});
    CHECK(tokenizer.encode("ololol") == Ids{'o', lolo, 'l'});
    CHECK(tokenizer.encode("lo lo t") == Ids{lo, ' ', lo, space_t});
    CHECK(tokenizer.encode("\xc3\xa9") == Ids{e_acute});
    CHECK(tokenizer.encode("e\xcc\x81") == Ids{'e', 0xcc, 0x81});  // no normalization unless asked for
    CHECK(tokenizer.encode("lo<end>lo<note><en") == Ids{lo, end_token, lo, note_token, '<', 'e', 'n'});
    for (const std::string& text :
         {std::string("a\0b", 3), std::string("tab\t\r\n  two"), std::string("\xf0\x9f\x98\x80!")})
        CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
    CHECK(tokenizer.decode({lo, end_token, note_token}) == "lo<note>");
    CHECK(tokenizer.bytes_of(lolo) == 4);
    CHECK(tokenizer.bytes_of(e_acute) == 2);
    CHECK(tokenizer.bytes_of(end_token) == 0);
    CHECK(tokenizer.bytes_of(note_token) == 6);
    CHECK(mentions(error_of([&] { tokenizer.decode({263}); }), {"tokenizer.json", "263"}));
    CHECK(mentions(error_of([&] { tokenizer.encode("\xff"); }), {"UTF-8"}));
}

TEST_CASE("byte-level: patterns, digits, normalization, words before merges, pairs as lists", "[data]") {
    const TemporaryDirectory directory;
    json file = tokenizer_file_with(merges);
    const auto encoded = [&](const std::string& text) {
        return Tokenizer(directory.write("tokenizer.json", file.dump())).encode(text);
    };
    const json bytes_alone = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
    file["pre_tokenizer"] = bytes_alone;
    CHECK(encoded("lo t") == Ids{lo, space_t});
    const json split = {{"type", "Split"},
                        {"pattern", {{"Regex", "l|\\p{N}{1,2}"}}},
                        {"behavior", "Isolated"},
                        {"invert", false}};
    file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, bytes_alone}}};
    CHECK(encoded("lolo") == Ids{'l', 'o', 'l', 'o'});
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", "o."}};
    CHECK(encoded("lo.lo") == Ids{'l', 'o', '.', lo});
    file["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}, {"individual_digits", true}};
    CHECK(encoded("lo12") == Ids{lo, '1', '2'});
    file["normalizer"] = {{"type", "NFC"}};
    CHECK(encoded("e\xcc\x81") == Ids{e_acute});
    file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}};
    CHECK(encoded("t") == Ids{space_t});
    // "ol" is a token: as a word by itself it is that one although "l" "o" would merge first elsewhere.
    file = tokenizer_file_with({{"l", "o"}, {"o", "l"}, {"ol", "o"}});
    CHECK(encoded("olo") == Ids{'o', 256});
    file["model"]["ignore_merges"] = true;
    CHECK(encoded("olo") == Ids{258});
    for (json& merge : file["model"]["merges"]) {
        const std::string text = merge;
        merge = {text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)};
    }
    CHECK(encoded("olol") == Ids{'o', 256, 'l'});
}

TEST_CASE("byte-level: a folder says where documents begin and end", "[data]") {
    const TemporaryDirectory directory;
    directory.write("tokenizer.json", tokenizer_file_with(merges).dump());
    const std::string folder = std::string(directory / "");
    directory.write("config.json", R"({"bos_token_id": 5, "eos_token_id": [261, 3]})");
    CHECK(Tokenizer(folder).bos_id() == 5);
    CHECK(Tokenizer(folder).eos_id() == end_token);
    directory.write("config.json", R"({"bos_token_id": 263, "eos_token_id": null})");
    CHECK(Tokenizer(folder).bos_id() == -1);
    CHECK(Tokenizer(folder).eos_id() == -1);
    directory.write("tokenizer_config.json", R"({"bos_token": null, "eos_token": {"content": "<end>"}})");
    CHECK(Tokenizer(folder).bos_id() == -1);
    CHECK(Tokenizer(folder).eos_id() == end_token);
    CHECK(tokenizer_hash(folder) == tokenizer_hash(directory / "tokenizer.json"));
}

TEST_CASE("byte-level: added tokens that are normalized are looked for in what the others leave", "[data]") {
    const TemporaryDirectory directory;
    json file = tokenizer_file_with(merges);
    // "<no" is found first where it is not normalized, although "<note>" is longer and begins alike.
    file["added_tokens"][1]["normalized"] = true;
    file["added_tokens"].push_back({{"id", note_token + 1}, {"content", "<no"}, {"special", false}});
    const Tokenizer tokenizer(directory.write("tokenizer.json", file.dump()));
    CHECK(tokenizer.encode("<note>") == std::vector<int32_t>{note_token + 1, 't', 'e', '>'});
    file["added_tokens"][2]["content"] = "no matter";
    const Tokenizer apart(directory.write("apart.json", file.dump()));
    CHECK(apart.encode("a<note>") == std::vector<int32_t>{'a', note_token});
}

TEST_CASE("byte-level: what would give other tokens is refused by name", "[data]") {
    const TemporaryDirectory directory;
    const auto refused = [&](const std::string& pointer, const json& value, const std::string& name) {
        json file = tokenizer_file_with(merges);
        file[json::json_pointer(pointer)] = value;
        const std::string error = error_of_file(directory, file);
        INFO(error);
        return mentions(error, {"tokenizer.json", name});
    };
    CHECK(refused("/model/type", "Unigram", "Unigram"));
    CHECK(refused("/model/byte_fallback", true, "byte_fallback"));
    CHECK(refused("/model/dropout", 0.1, "dropout"));
    CHECK(refused("/normalizer", {{"type", "Lowercase"}}, "Lowercase"));
    CHECK(refused("/pre_tokenizer", {{"type", "Metaspace"}}, "Metaspace"));
    CHECK(refused("/pre_tokenizer", nullptr, "ByteLevel"));
    CHECK(refused("/added_tokens/0/lstrip", true, "lstrip"));
    CHECK(refused("/pre_tokenizer",
                  {{"type", "Split"}, {"pattern", {{"Regex", "("}}}, {"behavior", "Isolated"}},
                  "pattern '('"));
    CHECK(refused("/model/merges/0", "x", "one part"));
    CHECK(refused("/model/merges/0", "x y", "result"));
    CHECK(refused("/model/vocab", {{"a", 0}}, "a byte has no token"));
    // What the library numbers, or finds, in ways of its own.
    CHECK(refused("/model/merges/1", "l o", "occurs twice"));
    CHECK(refused("/model/vocab/a", static_cast<int>('b'), "an id of two tokens"));
    CHECK(refused("/added_tokens/0/id", 5, "in place of 261"));
    CHECK(refused("/added_tokens/1/id", 700, "in place of 262"));
    json swapped = tokenizer_file_with(merges);
    std::swap(swapped["added_tokens"][0], swapped["added_tokens"][1]);
    CHECK(mentions(error_of_file(directory, swapped), {"<note>", "in place of 261"}));
    json normalized = tokenizer_file_with(merges);
    normalized["added_tokens"][0]["normalized"] = true;
    CHECK(error_of_file(directory, normalized).empty());
    normalized["normalizer"] = {{"type", "NFC"}};
    CHECK(mentions(error_of_file(directory, normalized), {"<end>", "normalized text"}));
    json no_dropout = tokenizer_file_with(merges);
    no_dropout["model"]["dropout"] = 0.0;
    CHECK(error_of_file(directory, no_dropout).empty());
    const std::string path = directory.write("tokenizer.json", "{\"model\": ");
    CHECK(mentions(error_of([&] { Tokenizer{path}; }), {"tokenizer.json", "not a tokenizer.json"}));
    CHECK(mentions(error_of([&] { Tokenizer(directory / "nowhere"); }), {"nowhere", "cannot read"}));
    const TemporaryDirectory empty;
    CHECK(mentions(error_of([&] { Tokenizer(std::string(empty / "")); }), {"neither a tokenizer.json"}));
}

TEST_CASE("byte-level: a field that is missing or of another type is named", "[data]") {
    const TemporaryDirectory directory;
    const json absent = json::value_t::discarded;
    const struct {
        const char* pointer;
        json value;
        std::vector<std::string> words;
    } table[] = {
        {"/model", absent, {"model: is missing"}},
        {"/model", nullptr, {"model: must be an object, not null"}},
        {"/model/vocab", absent, {"model.vocab: is missing"}},
        {"/model/vocab", nullptr, {"model.vocab: must be an object, not null"}},
        {"/model/vocab", json::array({"a"}), {"model.vocab: must be an object, not a list"}},
        {"/model/vocab/a", 1.5, {"model.vocab.\"a\"", "not 1.5"}},
        {"/model/vocab/a", 1.0, {"model.vocab.\"a\"", "not 1.0"}},
        {"/model/vocab/a", -1, {"model.vocab.\"a\"", "from 0 to 16777215, not -1"}},
        {"/model/vocab/a", (uint64_t{1} << 32) + 97, {"model.vocab.\"a\"", "not 4294967393"}},
        {"/model/vocab/a", "97", {"model.vocab.\"a\"", "not \"97\""}},
        {"/model/vocab/a", nullptr, {"model.vocab.\"a\"", "not null"}},
        {"/model/merges", absent, {"model.merges: is missing"}},
        {"/model/merges", nullptr, {"model.merges: must be a list, not null"}},
        {"/model/merges", json::object(), {"model.merges: must be a list, not {}"}},
        {"/model/merges/0", 5, {"model.merges: must be a text, not 5"}},
        {"/model/merges/0", json::array({"l"}), {"model.merges: a merge has 1 parts"}},
        {"/model/merges/0", json::array({"l", "o", "x"}), {"model.merges: a merge has 3 parts"}},
        {"/model/merges/0", json::array({"l", 3}), {"model.merges: must be a text, not 3"}},
        {"/model/ignore_merges", "no", {"model.ignore_merges: must be true or false"}},
        {"/model/type", nullptr, {"model.type null"}},
        {"/added_tokens", nullptr, {"added_tokens: must be a list, not null"}},
        {"/added_tokens", json::object(), {"added_tokens: must be a list"}},
        {"/added_tokens/0", "<end>", {"added_tokens: must be an object"}},
        {"/added_tokens/0/content", absent, {"added_tokens.content: is missing"}},
        {"/added_tokens/0/content", 5, {"added_tokens.content: must be a text, not 5"}},
        {"/added_tokens/0/id", absent, {"added token \"<end>\".id: is missing"}},
        {"/added_tokens/0/id", -1, {"added token \"<end>\".id", "not -1"}},
        {"/added_tokens/0/id", 261.5, {"added token \"<end>\".id", "not 261.5"}},
        {"/added_tokens/0/id", 2000000000, {"added token \"<end>\".id", "not 2000000000"}},
        {"/added_tokens/0/special", "yes", {"added token \"<end>\".special: must be true or false"}},
        {"/normalizer", "NFC", {"normalizer: must be an object, not \"NFC\""}},
        {"/normalizer", json::object(), {"normalizer.type: is missing"}},
        {"/normalizer", {{"type", "Sequence"}}, {"normalizer.normalizers: is missing"}},
        {"/normalizer", {{"type", "Sequence"}, {"normalizers", {1}}}, {"normalizer.normalizers: must be"}},
        {"/pre_tokenizer", json::array(), {"pre_tokenizer: must be an object"}},
        {"/pre_tokenizer/type", 7, {"pre_tokenizer.type: must be a text, not 7"}},
        {"/pre_tokenizer/use_regex", 1, {"pre_tokenizer ByteLevel.use_regex: must be true or false, not 1"}},
        {"/pre_tokenizer/add_prefix_space", nullptr, {"ByteLevel.add_prefix_space: must be true or false"}},
        {"/pre_tokenizer",
         {{"type", "Split"}, {"pattern", "x"}},
         {"pre_tokenizer Split.behavior: is missing"}},
        {"/pre_tokenizer",
         {{"type", "Split"}, {"pattern", "x"}, {"behavior", "Isolated"}},
         {"pre_tokenizer Split.pattern: must be an object, not \"x\""}},
        {"/pre_tokenizer",
         {{"type", "Split"}, {"pattern", {{"Regex", 5}}}, {"behavior", "Isolated"}},
         {"pre_tokenizer Split.pattern.Regex: must be a text, not 5"}}};
    for (const auto& [pointer, value, words] : table) {
        json file = tokenizer_file_with(merges);
        const json::json_pointer place(pointer);
        if (value.is_discarded())
            file[place.parent_pointer()].erase(place.back());
        else
            file[place] = value;
        const std::string error = error_of_file(directory, file);
        INFO(pointer << " " << (value.is_discarded() ? "absent" : value.dump()) << ": " << error);
        CHECK(mentions(error, {directory / "tokenizer.json"}));
        for (const std::string& word : words) CHECK(mentions(error, {word}));
    }
}

TEST_CASE("byte-level: whatever a field holds, there is a tokenizer or one line", "[data]") {
    const TemporaryDirectory directory;
    const json whole = tokenizer_file_with(merges);
    const std::vector<json> odd = {nullptr,
                                   true,
                                   -1,
                                   1.5,
                                   uint64_t{1} << 40,
                                   18446744073709551615u,
                                   "",
                                   "x y",
                                   json::array(),
                                   json::array({1}),
                                   json::object(),
                                   json{{"type", "NFC"}}};
    std::vector<std::string> places;
    const json flat = whole.flatten();
    for (const auto& [place, value] : flat.items())
        if (place.find("/vocab/") == std::string::npos || place.size() % 7 == 0) places.push_back(place);
    REQUIRE(places.size() > 20);
    int refusals = 0;
    for (const std::string& place : places) {
        for (const json& value : odd) {
            json file = whole;
            file[json::json_pointer(place)] = value;
            const std::string path = directory.write("tokenizer.json", file.dump());
            const std::string error = error_of([&] {
                const Tokenizer tokenizer(path);
                tokenizer.decode(tokenizer.encode("lo t\xc3\xa9"));
            });
            if (error.empty()) continue;
            ++refusals;
            INFO(place << " " << value << ": " << error);
            CHECK(mentions(error, {path}));
            for (const char* foreign : {"json.exception", "std::", "vector", "_M_"})
                CHECK(error.find(foreign) == std::string::npos);
        }
    }
    CHECK(refusals > 50);
}

TEST_CASE("byte-level: files that are empty, no object, or cut short", "[data]") {
    const TemporaryDirectory directory;
    const std::string whole = tokenizer_file_with(merges).dump();
    const auto error_for = [&](const std::string& content) {
        const std::string path = directory.write("tokenizer.json", content);
        const std::string error = error_of([&] { Tokenizer{path}; });
        CHECK(mentions(error, {path}));
        return error;
    };
    CHECK(mentions(error_for(""), {"is empty", "tokenizer.json"}));
    CHECK(mentions(error_for("[]"), {"nor a tokenizer.json"}));
    CHECK(mentions(error_for("\xef\xbb\xbf" + whole), {"byte order mark"}));
    CHECK(mentions(error_for(whole.substr(0, whole.size() / 2)), {"no JSON", "at byte"}));
    CHECK(mentions(error_for(whole + "x"), {"no JSON", "at byte"}));
    CHECK(mentions(error_for("{\"model\": 1e999}"), {"no JSON", "too large"}));
    CHECK(mentions(error_for("{\"model\": " + std::string(100000, '[')), {"no JSON"}));
}

TEST_CASE("byte-level: files beside it are read in one order", "[data]") {
    // test/scripts/test_tokenizers.py holds the three readers of them to the same.
    const TemporaryDirectory directory;
    const std::string path = directory.write("other_name", tokenizer_file_with(merges).dump());
    const auto begin_and_end = [&] {
        const Tokenizer tokenizer(path);
        return std::pair(tokenizer.bos_id(), tokenizer.eos_id());
    };
    directory.write("generation_config.json", R"({"bos_token_id": 3, "eos_token_id": [4, 5]})");
    CHECK(begin_and_end() == std::pair(3, 4));
    directory.write("config.json", R"({"bos_token_id": 6})");
    CHECK(begin_and_end() == std::pair(6, 4));
    directory.write("tokenizer_config.json",
                    R"({"bos_token": null, "eos_token": "lo", "added_tokens_decoder": {}})");
    CHECK(begin_and_end() == std::pair(6, lo));  // of the vocabulary, no added token
    directory.write("special_tokens_map.json",
                    R"({"bos_token": {"content": "<note>"}, "eos_token": "<end>"})");
    CHECK(begin_and_end() == std::pair(note_token, lo));
    directory.write("tokenizer_config.json", R"({"bos_token": null, "eos_token": "lo"})");
    CHECK(begin_and_end() == std::pair(note_token, end_token));
    directory.write("special_tokens_map.json", "{\"bos_token\": 5}");
    CHECK(mentions(error_of([&] { Tokenizer{path}; }), {"special_tokens_map.json: bos_token", "not 5"}));
    directory.write("special_tokens_map.json", "{");
    CHECK(mentions(error_of([&] { Tokenizer{path}; }), {"special_tokens_map.json: no JSON"}));
}
