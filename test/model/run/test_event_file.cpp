#include "model/run/event_file.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <vector>

#include "test/support/catch.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// The events of the one event file in `directory`; checks lengths and checksums of their records.
std::vector<std::string> events_in(const std::string& directory) {
    std::vector<std::string> events;
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
        REQUIRE(entry.path().filename().string().starts_with("events.out.tfevents."));
        const std::string text = read_text_file(entry.path());
        const auto masked = [&](size_t place) {
            uint32_t value;
            std::memcpy(&value, &text.at(place), sizeof value);
            value -= 0xa282ead8u;
            return value << 15 | value >> 17;
        };
        for (size_t place = 0; place < text.size();) {
            uint64_t length;
            std::memcpy(&length, &text.at(place), sizeof length);
            CHECK(masked(place + 8) == crc32c(text.substr(place, 8)));
            events.push_back(text.substr(place + 12, length));
            REQUIRE(events.back().size() == length);
            CHECK(masked(place + 12 + length) == crc32c(events.back()));
            place += length + 16;
        }
    }
    return events;
}

// Behind the wall time, 9 bytes.
std::string rest(const std::string& event) {
    REQUIRE(event.size() > 9);
    CHECK(event[0] == 0x09);
    return event.substr(9);
}

std::string bytes_of(float value) {
    std::string bytes(4, 0);
    std::memcpy(bytes.data(), &value, 4);
    return bytes;
}

}  // namespace

TEST_CASE("CRC-32C has the values of RFC 3720", "[event_file]") {
    CHECK(crc32c("123456789") == 0xe3069283u);
    CHECK(crc32c(std::string(32, 0)) == 0x8a9136aau);
    CHECK(crc32c(std::string(32, static_cast<char>(0xff))) == 0x62a8ab43u);
    CHECK(crc32c("") == 0);
}

TEST_CASE("an event file holds version, scalars and where a run went on, byte by byte", "[event_file]") {
    const TemporaryDirectory directory;
    {
        EventFile file(directory / ".", 300);
        file.write(300, {{"a/b", 1.5}, {"c", std::numeric_limits<double>::quiet_NaN()}});
        file.write(int64_t{1} << 40, {{"d", -2}});
    }
    const std::vector<std::string> events = events_in(directory / ".");
    REQUIRE(events.size() == 4);
    using namespace std::string_literals;
    CHECK(rest(events[0]) ==
          "\x10\x00\x1a\x0d"
          "brain.Event:2"s);
    CHECK(rest(events[1]) == "\x10\xac\x02\x3a\x02\x08\x01"s);
    const std::string first =
        "\x0a\x03"
        "a/b\x15"s +
        bytes_of(1.5f);
    CHECK(rest(events[2]).substr(0, 5 + 2 + first.size()) == "\x10\xac\x02\x2a\x16\x0a\x0a"s + first);
    CHECK(rest(events[3]) ==
          "\x10\x80\x80\x80\x80\x80\x20\x2a\x0a\x0a\x08\x0a\x01"
          "d\x15"s +
              bytes_of(-2.0f));
}

TEST_CASE("a new run's event file begins without a session's start", "[event_file]") {
    const TemporaryDirectory directory;
    { EventFile file(directory / ".", std::nullopt); }
    CHECK(events_in(directory / ".").size() == 1);
    CHECK_THROWS_AS(EventFile(directory / "missing", std::nullopt), std::runtime_error);
}
