// Token shards, byte by byte, without the code under test: the format is in data/shard.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "test/support/files.h"

namespace train_qat::test {

// A header with the given first integers, as bytes.
inline std::string header_bytes(std::initializer_list<int32_t> values) {
    std::array<int32_t, 256> header{};
    std::copy(values.begin(), values.end(), header.begin());
    return {reinterpret_cast<const char*>(header.data()), sizeof header};
}

template <typename Token>
std::string token_bytes(const std::vector<Token>& tokens) {
    return {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(Token)};
}

inline void write_shard(const std::string& path, const std::vector<uint32_t>& tokens, uint32_t vocabulary,
                        uint64_t tokenizer_hash) {
    const bool wide = vocabulary > 65536 || *std::max_element(tokens.begin(), tokens.end()) > 65535;
    const std::vector<uint16_t> narrow(tokens.begin(), tokens.end());
    write_bytes(path,
                header_bytes({wide ? 20240801 : 20240520, wide ? 7 : 1, static_cast<int32_t>(tokens.size()),
                              static_cast<int32_t>(vocabulary), static_cast<int32_t>(tokenizer_hash),
                              static_cast<int32_t>(tokenizer_hash >> 32)}) +
                    (wide ? token_bytes(tokens) : token_bytes(narrow)));
}

}  // namespace train_qat::test
