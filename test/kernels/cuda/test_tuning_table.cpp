#include "kernels/cuda/platform/tuning_table.h"

#include <map>
#include <string>

#include "test/support/catch.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

const std::map<std::string, std::string> choices = {
    {"forward_64x128", "codes"}, {"forward_64x256", "levels"}, {"gradient_64x128", "0123456789abcdef"}};

std::string choice_of(const TuningTable& table, const std::string& key) {
    const std::string* choice = table.find(key);
    return choice == nullptr ? "none" : *choice;
}

}  // namespace

TEST_CASE("a tuning table gives its choices to the next process", "[tuning]") {
    const TemporaryDirectory directory;
    const std::string file = directory / "tuning.txt";
    TuningTable first(file, "card A");
    CHECK(first.find("forward_64x128") == nullptr);
    for (const auto& [key, choice] : choices) first.set(key, choice);
    for (const auto& [key, choice] : choices) {
        CHECK(choice_of(first, key) == choice);
        CHECK(choice_of(TuningTable(file, "card A"), key) == choice);
    }
    TuningTable nothing_kept("", "card A");
    nothing_kept.set("key", "choice");
    CHECK(choice_of(nothing_kept, "key") == "choice");
}

TEST_CASE("another device's tuning table is replaced by the first new choice", "[tuning]") {
    const TemporaryDirectory directory;
    const std::string file = directory / "tuning.txt";
    TuningTable(file, "card A").set("key", "of_A");
    const std::string of_a = read_bytes(file);
    TuningTable other(file, "card B");
    CHECK(other.find("key") == nullptr);
    CHECK(read_bytes(file) == of_a);
    other.set("other", "of_B");
    const TuningTable again(file, "card B");
    CHECK(again.find("key") == nullptr);
    CHECK(choice_of(again, "other") == "of_B");
}

TEST_CASE("a tuning table that was cut off anywhere loses its last lines only", "[tuning]") {
    const TemporaryDirectory directory;
    const std::string file = directory / "tuning.txt";
    {
        TuningTable table(file, "card A");
        for (const auto& [key, choice] : choices) table.set(key, choice);
    }
    const std::string whole = read_bytes(file);
    for (size_t length = 0; length < whole.size(); ++length) {
        INFO(length << " of " << whole.size() << " bytes");
        const std::string kept = whole.substr(0, length);
        write_bytes(file, kept);
        TuningTable(file, "card A").set("new", "choice");
        const TuningTable table(file, "card A");
        CHECK(choice_of(table, "new") == "choice");
        for (const auto& [key, choice] : choices) {
            const bool line_is_whole = kept.find(key + " " + choice + "\n") != std::string::npos;
            CHECK(choice_of(table, key) == (line_is_whole ? choice : "none"));
        }
    }
}

TEST_CASE("a file that is no tuning table is refused and left alone", "[tuning]") {
    const TemporaryDirectory directory;
    const std::string file = directory.write("notes.txt", "precious\n");
    CHECK_THAT(error_of([&] { TuningTable(file, "card A"); }),
               contains_text(file) && contains_text("not a tuning table"));
    CHECK(read_bytes(file) == "precious\n");
    TuningTable unwritable(directory / "missing/tuning.txt", "card A");
    CHECK_THAT(error_of([&] { unwritable.set("key", "choice"); }),
               contains_text("missing/tuning.txt") && contains_text("No such file"));
}
