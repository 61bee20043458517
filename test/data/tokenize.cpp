// train_qat_tokenize TOKENIZER: reads a JSON list of texts from standard input and writes one object for each, with its
// ids, the text that they stand for, and the bytes of each. For comparisons with other tokenizers.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "data/tokenizer.h"

int main(int argc, char** argv) {
    using namespace train_qat;
    try {
        if (argc != 2) throw std::runtime_error("usage: train_qat_tokenize TOKENIZER <TEXTS.json");
        const Tokenizer tokenizer(argv[1]);
        nlohmann::json results = nlohmann::json::array();
        for (const std::string text : nlohmann::json::parse(std::cin)) {
            const std::vector<int32_t> ids = tokenizer.encode(text);
            int64_t bytes = 0;
            for (const int32_t id : ids) bytes += tokenizer.bytes_of(id);
            results.push_back({{"ids", ids}, {"text", tokenizer.decode(ids)}, {"bytes", bytes}});
        }
        std::cout << nlohmann::json{{"vocabulary", tokenizer.vocabulary_size()},
                                    {"bos", tokenizer.bos_id()},
                                    {"eos", tokenizer.eos_id()},
                                    {"results", results}}
                         .dump()
                  << "\n";
    } catch (const std::exception& error) {
        std::fprintf(stderr, "train_qat_tokenize: error: %s\n", error.what());
        return 2;
    }
    return 0;
}
