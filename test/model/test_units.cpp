#include "model/units.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "test/support/catch.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

TEST_CASE("parse_number takes the whole text or nothing", "[units]") {
    CHECK(parse_number<int64_t>("-12") == -12);
    CHECK(parse_number<int64_t>("+12") == 12);
    CHECK(parse_number<double>("2.5e-3") == 2.5e-3);
    CHECK(parse_number<uint64_t>("18446744073709551615") == UINT64_MAX);
    for (const char* text : {"", " 1", "1 ", "+", "+-1", "++1", "0x1", "1,000", "1.5x", "one"}) {
        INFO(text);
        CHECK_FALSE(parse_number<double>(text).has_value());
        CHECK_FALSE(parse_number<int64_t>(text).has_value());
    }
    CHECK_FALSE(parse_number<int64_t>("1.0").has_value());
    CHECK_FALSE(parse_number<uint64_t>("-1").has_value());
    CHECK_FALSE(parse_number<int64_t>("9223372036854775808").has_value());
}

TEST_CASE("parse_count reads counts exactly and refuses everything else", "[units]") {
    const auto count = [](const std::string& text) { return parse_count(text, "-tokens"); };
    CHECK(count("396M") == 396'000'000);
    CHECK(count("13.8M") == 13'800'000);
    CHECK(count("1.1B") == 1'100'000'000);
    CHECK(count("8b") == 8'000'000'000);
    CHECK(count("1.4T") == 1'400'000'000'000);
    CHECK(count("0.5k") == 500);
    CHECK(count(".5K") == 500);
    CHECK(count("120000") == 120'000);
    CHECK(count("1") == 1);
    CHECK(count("9000000T") == 9'000'000'000'000'000'000);
    const auto refusal = [&](const std::string& text) { return error_of([&] { count(text); }); };
    for (const char* text :
         {"8X", "", " 8", "8 ", "8MB", "-3", "+3", "M", ".", "inf", "nan", "1e9", "0x10", "1,000", "8..1"}) {
        INFO(text);
        CHECK_THAT(refusal(text),
                   contains_text("-tokens: cannot read '" + std::string(text) + "': expected"));
    }
    CHECK_THAT(refusal("0"), contains_text("at least 1"));
    CHECK_THAT(refusal("0.0M"), contains_text("at least 1"));
    CHECK_THAT(refusal("1.5"), contains_text("whole number"));
    CHECK_THAT(refusal("1.2345K"), contains_text("whole number"));
    CHECK_THAT(refusal("10000000T"), contains_text("too large"));
    CHECK_THAT(refusal(std::string(400, '9')), contains_text("too large"));
}

TEST_CASE("format_count and format_exact", "[units]") {
    CHECK(format_count(13'767'552) == "13.8M");
    CHECK(format_count(8'000'000'000) == "8.0B");
    CHECK(format_count(0) == "0");
    CHECK(format_count(999) == "999");
    CHECK(format_count(1000) == "1.0K");
    CHECK(format_count(999'949) == "999.9K");
    CHECK(format_count(999'950) == "1.0M");
    CHECK(format_count(1'400'000'000'000) == "1.4T");
    CHECK(format_count(9'000'000'000'000'000'000) == "9000000.0T");
    CHECK(format_exact(0) == "0");
    CHECK(format_exact(999) == "999");
    CHECK(format_exact(1000) == "1,000");
    CHECK(format_exact(-123456) == "-123,456");
    CHECK(format_exact(13'767'552) == "13,767,552");
    // What is printed can be read back, within its one decimal.
    for (int64_t value = 1; value < 1'000'000'000'000'000; value = value * 3 + 1) {
        const auto read = static_cast<double>(parse_count(format_count(value), "-n"));
        REQUIRE(std::abs(read / static_cast<double>(value) - 1.0) <= 0.0501 / (value < 1000 ? 1e9 : 1.0));
    }
}

TEST_CASE("byte counts are printed in decimal units", "[units]") {
    CHECK(format_bytes(0) == "0 bytes");
    CHECK(format_bytes(999) == "999 bytes");
    CHECK(format_bytes(1000) == "1.0 kB");
    CHECK(format_bytes(999'949) == "999.9 kB");
    CHECK(format_bytes(999'950) == "1.0 MB");
    CHECK(format_bytes(1'500'000'000) == "1.5 GB");
    CHECK(format_bytes(INT64_MAX) == "9223372.0 TB");
}

TEST_CASE("durations have two units at most", "[units]") {
    const std::vector<std::pair<double, std::string>> table = {
        {0, "0.0s"},     {0.04, "0.0s"},      {8.2, "8.2s"},     {59.94, "59.9s"},   {59.96, "1m00s"},
        {60, "1m00s"},   {192, "3m12s"},      {192.4, "3m12s"},  {3599.4, "59m59s"}, {3599.6, "1h00m"},
        {3720, "1h02m"}, {86'369, "23h59m"},  {86'371, "1d00h"}, {183'600, "2d03h"}, {86'400e4, "10000d00h"},
        {-1, "?"},       {std::nan(""), "?"}, {INFINITY, "?"}};
    for (const auto& [seconds, text] : table) CHECK(format_duration(seconds) == text);
}

TEST_CASE("the time is written as in ISO 8601", "[units]") {
    const std::string text = utc_time();
    const std::string form = "0000-00-00T00:00:00Z";
    REQUIRE(text.size() == form.size());
    for (size_t i = 0; i < form.size(); ++i)
        CHECK((form[i] == '0' ? text[i] >= '0' && text[i] <= '9' : text[i] == form[i]));
}
