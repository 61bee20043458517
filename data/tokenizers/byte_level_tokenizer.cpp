// The byte-level BPE of a Hugging Face tokenizer.json: text is normalized, divided at added tokens and by patterns, and the
// bytes of each piece become tokens by byte-pair encoding. A file that asks for anything else is refused by the name of what
// it asks for: nearly the same tokens would be the wrong ones.
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include "data/tokenizers/byte_pairs.h"
#include "data/tokenizers/json_fields.h"
#include "data/tokenizers/text_pattern.h"
#include "data/tokenizers/tokenizer_model.h"

namespace train_qat {
namespace {

using nlohmann::json;

constexpr int32_t largest_id = (1 << 24) - 1;

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

// The parts of the "Sequence" that a file holds as `key`, or the one part that there is; none of null.
std::vector<json> parts_of(const json& file, const char* key, const char* list) {
    if (!has_field(file, key)) return {};
    const json& part = object_of(file.at(key), key);
    if (field_of(part, "type", key) != "Sequence") return {part};
    std::vector<json> parts = list_of(field_of(part, list, key), place_of(key, list));
    for (const json& each : parts) object_of(each, place_of(key, list));
    return parts;
}

void require_absent(const json& object, const char* key, const std::string& place) {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null() || *found == false || *found == "") return;
    refuse(place_of(place, key) + " " + found->dump());
}

bool read_normalizer(const json& file) {
    bool compose = false;
    for (const json& part : parts_of(file, "normalizer", "normalizers")) {
        const json& type = field_of(part, "type", "normalizer");
        if (type != "NFC") refuse("normalizer " + type.dump());
        compose = true;
    }
    return compose;
}

struct Divider {
    std::vector<TextPattern> patterns;  // one after the other, each on the pieces of the one before
    bool space_first = false;           // a piece begins with a space, if need be an added one
};

std::string expression_of(const json& pattern) {
    const std::string place = "pre_tokenizer Split.pattern";
    object_of(pattern, place);
    if (pattern.contains("Regex")) return text_of(pattern.at("Regex"), place_of(place, "Regex"));
    return literal_expression(text_of(field_of(pattern, "String", place), place_of(place, "String")));
}

Divider read_divider(const json& file) {
    Divider divider;
    bool byte_level = false;
    for (const json& part : parts_of(file, "pre_tokenizer", "pretokenizers")) {
        const std::string type = text_of(field_of(part, "type", "pre_tokenizer"), "pre_tokenizer.type");
        const std::string place = "pre_tokenizer " + type;
        if (type == "Split") {
            const json& behavior = field_of(part, "behavior", place);
            if (behavior != "Isolated") refuse(place + " " + behavior.dump());
            require_absent(part, "invert", place);
            divider.patterns.emplace_back(expression_of(field_of(part, "pattern", place)));
        } else if (type == "Digits") {
            divider.patterns.emplace_back(flag_of(part, "individual_digits", place, false) ? R"(\p{N})"
                                                                                           : R"(\p{N}+)");
        } else if (type == "ByteLevel") {
            byte_level = true;
            divider.space_first = flag_of(part, "add_prefix_space", place, true);
            if (divider.space_first && !divider.patterns.empty())
                refuse("pre_tokenizer ByteLevel.add_prefix_space behind other parts");
            if (flag_of(part, "use_regex", place, true)) divider.patterns.emplace_back(gpt2_pattern);
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
    bool normalized;
};

// normalizes: text is normalized before the rest is encoded.
std::vector<AddedToken> read_added_tokens(const json& file, bool normalizes) {
    std::vector<AddedToken> tokens;
    if (!file.contains("added_tokens")) return tokens;
    for (const json& token : list_of(file.at("added_tokens"), "added_tokens")) {
        object_of(token, "added_tokens");
        const std::string& content =
            text_of(field_of(token, "content", "added_tokens"), "added_tokens.content");
        if (content.empty()) refuse("an added token without text");
        const std::string place = "added token " + json(content).dump();
        for (const char* key : {"single_word", "lstrip", "rstrip"}) require_absent(token, key, place);
        const bool normalized = flag_of(token, "normalized", place, false);
        if (normalized && normalizes) refuse(place + ", which is looked for in normalized text,");
        tokens.push_back({content, integer_of(field_of(token, "id", place), place + ".id", largest_id),
                          flag_of(token, "special", place, false), normalized});
    }
    return tokens;
}

// {token: id}, as the file writes tokens.
std::unordered_map<std::string, int32_t> read_vocabulary(const json& file) {
    const json& model = object_of(field_of(file, "model", ""), "model");
    std::unordered_map<std::string, int32_t> ids;
    for (const auto& [token, id] : object_of(field_of(model, "vocab", "model"), "model.vocab").items()) {
        if (!id.is_number_unsigned() || id.get<uint64_t>() > largest_id)
            integer_of(id, "model.vocab." + json(token).dump(), largest_id);
        ids.emplace(token, id.get<int32_t>());
    }
    return ids;
}

std::pair<std::string, std::string> read_merge(const json& merge) {
    const char* const place = "model.merges";
    if (merge.is_array()) {
        if (merge.size() != 2)
            throw std::runtime_error(std::string(place) + ": a merge has " + std::to_string(merge.size()) +
                                     " parts, must have two");
        return {bytes_of_token(text_of(merge[0], place)), bytes_of_token(text_of(merge[1], place))};
    }
    const std::string& text = text_of(merge, place);
    const size_t space = text.find(' ');
    if (space == std::string::npos)
        throw std::runtime_error(std::string(place) + ": the merge '" + text + "' has one part");
    return {bytes_of_token(text.substr(0, space)), bytes_of_token(text.substr(space + 1))};
}

BytePairs read_pairs(const json& file, const std::unordered_map<std::string, int32_t>& vocabulary) {
    const json& model = file.at("model");
    if (model.value("type", json("BPE")) != "BPE") refuse("model.type " + model.at("type").dump());
    if (!model.contains("dropout") || model.at("dropout") != 0.0) require_absent(model, "dropout", "model");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"})
        require_absent(model, key, "model");
    std::unordered_map<std::string, int32_t> tokens;
    for (const auto& [token, id] : vocabulary) tokens[bytes_of_token(token)] = id;
    std::vector<std::pair<std::string, std::string>> merges;
    std::set<std::pair<std::string, std::string>> seen;
    for (const json& merge : list_of(field_of(model, "merges", "model"), "model.merges")) {
        merges.push_back(read_merge(merge));
        if (!seen.insert(merges.back()).second) refuse("a merge that occurs twice, " + merge.dump() + ",");
    }
    const bool whole_words_first =
        has_field(model, "ignore_merges") && flag_of(model, "ignore_merges", "model", false);
    return BytePairs(std::move(tokens), merges, whole_words_first);
}

// No id stands for two tokens, and added tokens that the vocabulary lacks follow it without a gap: the library numbers them
// so, in the order of the file, whatever ids it gives them.
void check_ids(const std::unordered_map<std::string, int32_t>& vocabulary,
               const std::vector<AddedToken>& added) {
    std::unordered_set<int32_t> known;
    for (const auto& [token, id] : vocabulary)
        if (!known.insert(id).second) refuse("an id of two tokens, " + std::to_string(id) + ",");
    auto next = static_cast<int32_t>(vocabulary.size());
    for (const AddedToken& token : added) {
        const auto found = vocabulary.find(token.content);
        const int32_t expected = found != vocabulary.end() ? found->second : next++;
        if (token.id != expected)
            refuse("added token " + json(token.content).dump() + " with id " + std::to_string(token.id) +
                   " in place of " + std::to_string(expected));
    }
}

class ByteLevelModel final : public TokenizerModel {
  public:
    ByteLevelModel(const json& file, const BeginAndEnd& named)
        : ByteLevelModel(file, named, read_vocabulary(file)) {}

    uint32_t vocabulary_size() const override { return static_cast<uint32_t>(texts_.size()); }
    int32_t bos_id() const override { return bos_; }
    int32_t eos_id() const override { return eos_; }

    std::vector<int32_t> encode(const std::string& text) const override {
        std::vector<int32_t> ids;
        encode_added(text, false, ids);
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
    // Divides text at added tokens: first at those of which `normalized` is false, what is left at the others.
    void encode_added(const std::string& text, bool normalized, std::vector<int32_t>& ids) const {
        size_t done = 0;
        for (size_t at = 0; at < text.size();) {
            const AddedToken* const token = added_token_at(text, at, normalized);
            if (token == nullptr) {
                ++at;
                continue;
            }
            encode_rest(text.substr(done, at - done), normalized, ids);
            ids.push_back(token->id);
            done = at += token->content.size();
        }
        encode_rest(text.substr(done), normalized, ids);
    }
    void encode_rest(const std::string& text, bool normalized, std::vector<int32_t>& ids) const {
        normalized ? encode_plain(text, ids) : encode_added(text, true, ids);
    }

    const AddedToken* added_token_at(const std::string& text, size_t at, bool normalized) const {
        for (const AddedToken& token : added_)
            if (token.normalized == normalized && text.compare(at, token.content.size(), token.content) == 0)
                return &token;
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

    ByteLevelModel(const json& file, const BeginAndEnd& named, std::unordered_map<std::string, int32_t> ids)
        : compose_(read_normalizer(file)),
          divider_(read_divider(file)),
          added_(read_added_tokens(file, compose_)),
          pairs_(read_pairs(file, ids)) {
        check_ids(ids, added_);
        // Where several begin alike, the longest counts.
        std::stable_sort(added_.begin(), added_.end(), [](const AddedToken& a, const AddedToken& b) {
            return a.content.size() > b.content.size();
        });
        for (const auto& [token, id] : ids) set_text(id, bytes_of_token(token));
        for (const AddedToken& token : added_) {
            set_text(token.id, token.special ? "" : token.content);
            ids[token.content] = token.id;
        }
        bos_ = first_known(named.begin, ids);
        eos_ = first_known(named.end, ids);
    }

    void set_text(int32_t id, const std::string& text) {
        if (static_cast<size_t>(id) >= texts_.size()) texts_.resize(static_cast<size_t>(id) + 1);
        texts_[static_cast<size_t>(id)] = text;
    }

    // Of what other files name: the first that is a token here; -1 without one.
    static int32_t first_known(const std::vector<NamedToken>& named,
                               const std::unordered_map<std::string, int32_t>& ids) {
        for (const NamedToken& token : named) {
            const auto found = token.text.empty()
                                   ? std::find_if(ids.begin(), ids.end(),
                                                  [&](const auto& known) { return known.second == token.id; })
                                   : ids.find(token.text);
            if (found != ids.end()) return found->second;
        }
        return -1;
    }

    bool compose_;
    Divider divider_;
    std::vector<AddedToken> added_;  // the longest first
    BytePairs pairs_;
    std::vector<std::string> texts_;  // by id: bytes; of special tokens none
    int32_t bos_ = -1, eos_ = -1;
};

}  // namespace

std::unique_ptr<TokenizerModel> open_byte_level(const std::string& path, const std::string& content,
                                                const BeginAndEnd& named) {
    try {
        return std::make_unique<ByteLevelModel>(parse_object(content), named);
    } catch (const std::exception& error) {
        throw std::runtime_error(path + ": not a tokenizer.json that is read here: " + error.what());
    }
}

}  // namespace train_qat
