#include "data/hellaswag.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "data/file_bytes.h"

namespace train_qat {
namespace {

constexpr int32_t magic = 20240522, version = 1;
constexpr int64_t header_integers = 256, header_bytes = 4 * header_integers;
constexpr uint16_t start_of_example = 65535;
constexpr int64_t completions_of_example = 4;
constexpr const char* how_to_prepare = "data/prepare_hellaswag.py makes such files";

// Takes the numbers of one file in their order; errors name the file and the example.
class Reader {
  public:
    Reader(const std::string& path, int64_t vocabulary)
        : path_(path),
          vocabulary_(vocabulary),
          bytes_(read_file(path, "the HellaSwag file", how_to_prepare)) {
        std::array<int32_t, header_integers> header{};
        std::memcpy(header.data(), bytes_.data(), std::min(bytes_.size(), sizeof header));
        if (header[0] != magic)
            fail("is no HellaSwag file: magic " + std::to_string(header[0]) + ", expected " +
                 std::to_string(magic) + "; " + how_to_prepare);
        if (static_cast<int64_t>(bytes_.size()) < header_bytes)
            fail("truncated: it has " + std::to_string(bytes_.size()) + " bytes, its header alone 1024");
        if (header[1] != version)
            fail("version " + std::to_string(header[1]) + " is not supported, expected version 1");
        examples_ = header[2];
        if (examples_ < 1) fail("declares " + std::to_string(examples_) + " examples");
        const auto of_tokenizer = static_cast<uint32_t>(header[4]);
        if (of_tokenizer > vocabulary)
            fail("was prepared with a vocabulary of " + std::to_string(of_tokenizer) + ", the model has " +
                 std::to_string(vocabulary) + "; prepare it with the model's tokenizer");
    }

    std::vector<HellaswagExample> all() {
        std::vector<HellaswagExample> result;
        for (example_ = 0; example_ < examples_; ++example_) result.push_back(one());
        if (at_ != static_cast<int64_t>(bytes_.size()))
            fail("has " + std::to_string(static_cast<int64_t>(bytes_.size()) - at_) +
                 " bytes behind its last example; copy or prepare it again");
        return result;
    }

  private:
    [[noreturn]] void fail(const std::string& message) const {
        throw std::runtime_error(path_ + ": " + message);
    }

    [[noreturn]] void fail_in_example(const std::string& message) const {
        fail("example " + std::to_string(example_) + " " + message);
    }

    int64_t number() {
        uint16_t value;
        if (at_ + 2 > static_cast<int64_t>(bytes_.size()))
            fail_in_example("of " + std::to_string(examples_) +
                            " is cut off; copy or prepare the file again");
        std::memcpy(&value, bytes_.data() + at_, sizeof value);
        at_ += 2;
        return value;
    }

    std::vector<int32_t> tokens(const std::string& what) {
        std::vector<int32_t> result(static_cast<size_t>(number()));
        if (result.empty()) fail_in_example("has " + what + " without tokens");
        for (int32_t& token : result) {
            token = static_cast<int32_t>(number());
            if (token >= vocabulary_)
                fail_in_example("has a token " + std::to_string(token) + ", the model's vocabulary " +
                                std::to_string(vocabulary_) + "; prepare it with the model's tokenizer");
        }
        return result;
    }

    HellaswagExample one() {
        const int64_t begin = at_;
        if (number() != start_of_example) fail_in_example("does not begin with 65535: damaged");
        const int64_t declared = number();
        number();  // the index
        HellaswagExample result;
        result.label = number();
        const int64_t completions = number();
        if (completions != completions_of_example)
            fail_in_example("has " + std::to_string(completions) + " completions, expected 4");
        if (result.label >= completions)
            fail_in_example("has the label " + std::to_string(result.label) + ", expected 0 to 3");
        result.context = tokens("a context");
        for (int64_t i = 0; i < completions; ++i) result.completions.push_back(tokens("a completion"));
        if (at_ - begin != declared)
            fail_in_example("has " + std::to_string(at_ - begin) + " bytes and declares " +
                            std::to_string(declared) + ": damaged");
        return result;
    }

    const std::string path_;
    const int64_t vocabulary_;
    const std::string bytes_;
    int64_t examples_ = 0, example_ = 0;
    int64_t at_ = header_bytes;  // in bytes_
};

}  // namespace

std::vector<HellaswagExample> read_hellaswag(const std::string& path, int64_t vocabulary) {
    return Reader(path, vocabulary).all();
}

}  // namespace train_qat
