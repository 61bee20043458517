#include "model/storage/checksum.h"

#include <algorithm>
#include <random>
#include <string>
#include <string_view>

#include "test/support/catch.h"

using namespace train_qat;

TEST_CASE("the checksum is XXH3 with 64 bits", "[checksum]") {
    // From the reference implementation of xxHash (Python package xxhash 3).
    CHECK(checksum_text(checksum_of("")) == "2d06800538d394c2");
    CHECK(checksum_text(checksum_of("train_qat")) == "28cab42b11309fc0");
    std::string bytes;
    for (int i = 0; i < 1000; ++i) bytes.push_back(static_cast<char>(i % 251));
    CHECK(checksum_text(checksum_of(bytes)) == "33ef703fb2b20ed1");
    CHECK(checksum_text(checksum_of("train_qat", 1)) == "c0780f1a0a50eee6");
    CHECK(checksum_text(checksum_of(bytes.substr(0, 200), 12345678901)) == "c62272c4885b6fbd");
    CHECK(checksum_text(checksum_of(bytes, (uint64_t{1} << 63) + 7)) == "6e6e78a4218b1eef");
    Checksum pieces;
    for (int i = 0; i < 1000; i += 40) pieces.update(bytes.data() + i, 40);
    CHECK(pieces.value() == checksum_of(bytes));
    pieces.restart(12345678901);
    for (int i = 0; i < 200; i += 40) pieces.update(bytes.data() + i, 40);
    CHECK(checksum_text(pieces.value()) == "c62272c4885b6fbd");
}

TEST_CASE("the checksum of rows does not depend on the pieces in which they come", "[checksum]") {
    std::mt19937 engine(7);
    std::string bytes(2310, '\0');
    for (char& byte : bytes) byte = static_cast<char>(engine());
    for (const int64_t row_bytes : {1, 2, 7, 30, 330, 770, 2310}) {
        const int64_t offset = 1000 + row_bytes;
        uint64_t expected = 0;
        for (int64_t row = 0; row < 2310; row += row_bytes)
            expected += checksum_of(std::string_view(bytes).substr(row, row_bytes), offset + row);
        for (const int largest : {1, 5, 100, 3000}) {
            RowChecksum checksum(offset, row_bytes);
            for (int64_t done = 0; done < 2310;) {
                const int64_t count = std::min<int64_t>(1 + engine() % largest, 2310 - done);
                checksum.update(bytes.data() + done, count);
                done += count;
            }
            INFO(row_bytes << " bytes a row, pieces of up to " << largest);
            CHECK(checksum.value() == expected);
        }
    }
}
