// The byte-level BPE of a Hugging Face tokenizer.json: text is normalized, divided at added tokens and by patterns, and the
// bytes of each piece become tokens by byte-pair encoding. A file that asks for anything else is refused by the name of what
// it asks for: nearly the same tokens would be the wrong ones.
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/file_bytes.h"
#include "data/tokenizers/byte_pairs.h"
#include "data/tokenizers/text_pattern.h"
#include "data/tokenizers/tokenizer_model.h"

namespace train_qat {
namespace {

using nlohmann::json;

constexpr const char* gpt2_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

[[noreturn]] void refuse(const std::string& what) {
    throw std::runtime_error(what +
                             " is not supported; byte-level BPE is, as GPT-2, Llama 3 and Qwen have it" +
                             " (a SentencePiece tokenizer.model too)");
}

// ---- bytes written as characters

// {character: byte}: bytes that print stand for themselves, the others, in order, for the characters from U+0100 on.
std::map<int32_t, char> byte_characters() {
    std::map<int32_t, char> bytes;
    int32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
        const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        bytes[prints ? byte : next++] = static_cast<char>(byte);
    }
    return bytes;
}

// The bytes of a token; of one with other characters, the text itself.
std::string bytes_of_token(const std::string& token) {
    static const std::map<int32_t, char> bytes = byte_characters();
    std::string result;
    for (size_t at = 0; at < token.size();) {
        utf8proc_int32_t character = 0;
        const auto* const begin = reinterpret_cast<const utf8proc_uint8_t*>(token.data() + at);
        const utf8proc_ssize_t length =
            utf8proc_iterate(begin, static_cast<utf8proc_ssize_t>(token.size() - at), &character);
        const auto found = length > 0 ? bytes.find(character) : bytes.end();
        if (found == bytes.end()) return token;
        result += found->second;
        at += static_cast<size_t>(length);
    }
    return result;
}

std::string composed(const std::string& text) {
    utf8proc_uint8_t* result = nullptr;
    const utf8proc_ssize_t length = utf8proc_map(
        reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
        &result, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(result, &std::free);
    if (length < 0) throw std::runtime_error(std::string("text: ") + utf8proc_errmsg(length));
    return {reinterpret_cast<const char*>(result), static_cast<size_t>(length)};
}

// ---- reading the file

// The parts of a "Sequence", or the one part that there is; none of null.
std::vector<json> parts_of(const json& part, const char* list) {
    if (part.is_null()) return {};
    if (part.at("type") != "Sequence") return {part};
    return part.at(list).get<std::vector<json>>();
}

void require_absent(const json& object, const char* key, const std::string& place) {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null() || *found == false || *found == "") return;
    refuse(place + "." + key + " " + found->dump());
}

bool read_normalizer(const json& file) {
    bool compose = false;
    for (const json& part : parts_of(file.value("normalizer", json()), "normalizers")) {
        if (part.at("type") != "NFC") refuse("normalizer " + part.at("type").dump());
        compose = true;
    }
    return compose;
}

struct Divider {
    std::vector<TextPattern> patterns;  // one after the other, each on the pieces of the one before
    bool space_first = false;           // a piece begins with a space, if need be an added one
};

std::string expression_of(const json& pattern) {
    if (pattern.contains("Regex")) return pattern.at("Regex");
    return literal_expression(pattern.at("String"));
}

Divider read_divider(const json& file) {
    Divider divider;
    bool byte_level = false;
    for (const json& part : parts_of(file.value("pre_tokenizer", json()), "pretokenizers")) {
        const std::string type = part.at("type");
        if (type == "Split") {
            if (part.at("behavior") != "Isolated")
                refuse("pre_tokenizer Split " + part.at("behavior").dump());
            require_absent(part, "invert", "pre_tokenizer Split");
            divider.patterns.emplace_back(expression_of(part.at("pattern")));
        } else if (type == "Digits") {
            divider.patterns.emplace_back(part.value("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
        } else if (type == "ByteLevel") {
            byte_level = true;
            divider.space_first = part.value("add_prefix_space", true);
            if (divider.space_first && !divider.patterns.empty())
                refuse("pre_tokenizer ByteLevel.add_prefix_space behind other parts");
            if (part.value("use_regex", true)) divider.patterns.emplace_back(gpt2_pattern);
        } else {
            refuse("pre_tokenizer \"" + type + "\"");
        }
    }
    if (!byte_level) refuse("a tokenizer.json without a ByteLevel pre_tokenizer");
    return divider;
}

struct AddedToken {
    std::string content;
    int32_t id;
    bool special;
};

std::vector<AddedToken> read_added_tokens(const json& file) {
    std::vector<AddedToken> tokens;
    for (const json& token : file.value("added_tokens", json::array())) {
        const std::string place = "added token " + token.at("content").dump();
        for (const char* key : {"single_word", "lstrip", "rstrip"}) require_absent(token, key, place);
        tokens.push_back({token.at("content"), token.at("id"), token.value("special", false)});
        if (tokens.back().content.empty()) refuse("an added token without text");
    }
    // Where several begin alike, the longest counts.
    std::stable_sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) {
        return a.content.size() > b.content.size();
    });
    return tokens;
}

std::pair<std::string, std::string> read_merge(const json& merge) {
    if (merge.is_array()) return {bytes_of_token(merge.at(0)), bytes_of_token(merge.at(1))};
    const std::string text = merge;
    const size_t space = text.find(' ');
    if (space == std::string::npos) throw std::runtime_error("the merge '" + text + "' has one part");
    return {bytes_of_token(text.substr(0, space)), bytes_of_token(text.substr(space + 1))};
}

BytePairs read_pairs(const json& file) {
    const json& model = file.at("model");
    if (model.value("type", "BPE") != "BPE") refuse("model.type " + model.at("type").dump());
    for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"})
        require_absent(model, key, "model");
    std::unordered_map<std::string, int32_t> tokens;
    for (const auto& [token, id] : model.at("vocab").items()) tokens[bytes_of_token(token)] = id;
    std::vector<std::pair<std::string, std::string>> merges;
    for (const json& merge : model.at("merges")) merges.push_back(read_merge(merge));
    return BytePairs(std::move(tokens), merges, model.value("ignore_merges", false));
}

// ---- begin and end, which other files say

json read_beside(const std::string& path, const char* name) {
    const std::filesystem::path file = std::filesystem::path(path).replace_filename(name);
    if (!std::filesystem::exists(file)) return json();
    const std::string advice = "copy it again from where " + path + " is from";
    return json::parse(read_file(file.string(), "what goes with the tokenizer", advice), nullptr, false);
}

// The text of `key` in tokenizer_config.json: a string, or an object with it; empty: there is none.
std::string token_text(const json& config, const char* key) {
    const json token = config.value(key, json());
    if (token.is_string()) return token;
    return token.is_object() ? token.value("content", "") : "";
}

class ByteLevelModel final : public TokenizerModel {
  public:
    ByteLevelModel(const std::string& path, const json& file)
        : path_(path),
          compose_(read_normalizer(file)),
          divider_(read_divider(file)),
          added_(read_added_tokens(file)),
          pairs_(read_pairs(file)) {
        int32_t last = -1;
        for (const auto& [token, id] : file.at("model").at("vocab").items())
            last = std::max<int32_t>(last, id);
        for (const AddedToken& token : added_) last = std::max(last, token.id);
        constexpr int32_t most_tokens = 1 << 24;
        if (last >= most_tokens) refuse("token id " + std::to_string(last));
        texts_.resize(static_cast<size_t>(last) + 1);
        for (const auto& [token, id] : file.at("model").at("vocab").items())
            texts_.at(id.get<size_t>()) = bytes_of_token(token);
        for (const AddedToken& token : added_)
            texts_.at(static_cast<size_t>(token.id)) = token.special ? "" : token.content;
        find_begin_and_end();
    }

    uint32_t vocabulary_size() const override { return static_cast<uint32_t>(texts_.size()); }
    int32_t bos_id() const override { return bos_; }
    int32_t eos_id() const override { return eos_; }

    std::vector<int32_t> encode(const std::string& text) const override {
        std::vector<int32_t> ids;
        size_t done = 0;
        for (size_t at = 0; at < text.size();) {
            const AddedToken* const token = added_token_at(text, at);
            if (token == nullptr) {
                ++at;
                continue;
            }
            encode_plain(text.substr(done, at - done), ids);
            ids.push_back(token->id);
            done = at += token->content.size();
        }
        encode_plain(text.substr(done), ids);
        return ids;
    }

    std::string decode(const std::vector<int32_t>& ids) const override {
        std::string text;
        for (const int32_t id : ids) text += texts_[static_cast<size_t>(id)];
        return text;
    }

    int64_t bytes_of(int32_t id) const override {
        return static_cast<int64_t>(texts_[static_cast<size_t>(id)].size());
    }

  private:
    const AddedToken* added_token_at(const std::string& text, size_t at) const {
        for (const AddedToken& token : added_)
            if (text.compare(at, token.content.size(), token.content) == 0) return &token;
        return nullptr;
    }

    // Of text without added tokens.
    void encode_plain(std::string text, std::vector<int32_t>& ids) const {
        if (text.empty()) return;
        if (compose_) text = composed(text);
        if (divider_.space_first && text[0] != ' ') text.insert(0, " ");
        divide(text, 0, ids);
    }

    void divide(std::string_view piece, size_t pattern, std::vector<int32_t>& ids) const {
        if (pattern == divider_.patterns.size()) return pairs_.encode(piece, ids);
        divider_.patterns[pattern].divide(piece,
                                          [&](std::string_view part) { divide(part, pattern + 1, ids); });
    }

    int32_t id_of(const std::string& text) const {
        for (const AddedToken& token : added_)
            if (token.content == text) return token.id;
        return -1;
    }

    void find_begin_and_end() {
        const json tokens = read_beside(path_, "tokenizer_config.json");
        if (tokens.is_object()) {
            bos_ = id_of(token_text(tokens, "bos_token"));
            eos_ = id_of(token_text(tokens, "eos_token"));
            return;
        }
        const json config = read_beside(path_, "config.json");
        const auto number = [&](const char* key) {
            json id = config.is_object() ? config.value(key, json()) : json();
            if (id.is_array() && !id.empty()) id = id[0];  // several end a text; the first ends a document
            const bool known = id.is_number_integer() && id >= 0 && id < texts_.size();
            return known ? id.get<int32_t>() : -1;
        };
        bos_ = number("bos_token_id");
        eos_ = number("eos_token_id");
    }

    std::string path_;
    bool compose_;
    Divider divider_;
    std::vector<AddedToken> added_;  // the longest first
    BytePairs pairs_;
    std::vector<std::string> texts_;  // by id: bytes; of special tokens none
    int32_t bos_ = -1, eos_ = -1;
};

}  // namespace

std::unique_ptr<TokenizerModel> open_byte_level(const std::string& path, const std::string& content) {
    try {
        return std::make_unique<ByteLevelModel>(path, json::parse(content));
    } catch (const json::exception& error) {
        throw std::runtime_error(path + ": not a tokenizer.json: " + error.what());
    } catch (const std::exception& error) {
        throw std::runtime_error(path + ": " + error.what());
    }
}

}  // namespace train_qat
