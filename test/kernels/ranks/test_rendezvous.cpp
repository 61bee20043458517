// Ranks as threads that find each other through files.
#include <exception>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "kernels/ranks/rendezvous.h"
#include "test/support/catch.h"
#include "test/support/files.h"

using train_qat::share_by_file;
using train_qat::test::TemporaryDirectory;

namespace {

// Long enough on any machine; only the tests of missing ranks wait for it to pass, and use less.
constexpr double enough = 60;

struct Outcome {
    std::string bytes, error;
};

// What each rank of `present` got; the others do not come.
std::vector<Outcome> meet(const std::string& path, int size, const std::set<int>& present,
                          const std::string& bytes, double timeout) {
    std::vector<Outcome> outcomes(static_cast<size_t>(size));
    std::vector<std::thread> threads;
    for (const int rank : present)
        threads.emplace_back([&, rank] {
            Outcome& mine = outcomes[static_cast<size_t>(rank)];
            try {
                const auto make = [&] {
                    if (rank != 0) throw std::logic_error("only rank 0 makes the bytes");
                    return bytes;
                };
                mine.bytes = share_by_file(path, rank, size, make, timeout);
            } catch (const std::exception& error) {
                mine.error = error.what();
            }
        });
    for (std::thread& thread : threads) thread.join();
    return outcomes;
}

std::set<int> all_of(int size) {
    std::set<int> ranks;
    for (int rank = 0; rank < size; ++rank) ranks.insert(rank);
    return ranks;
}

size_t files_in(const std::string& directory) {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory)) ++count;
    return count;
}

void write(const std::string& path, const std::string& content) {
    std::ofstream(path) << content;
}

void require_all(const std::vector<Outcome>& outcomes, const std::string& bytes) {
    for (const Outcome& outcome : outcomes) {
        CHECK(outcome.error == "");
        CHECK(outcome.bytes == bytes);
    }
}

}  // namespace

TEST_CASE("all ranks get rank 0's bytes and no file is left", "[rendezvous]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "meeting";
    std::string bytes;
    for (int i = 0; i < 128; ++i) bytes += static_cast<char>(255 - i);
    const int size = GENERATE(1, 2, 7);
    require_all(meet(path, size, all_of(size), bytes, enough), bytes);
    CHECK(files_in(directory / "") == 0);
    require_all(meet(path, size, all_of(size), "", enough), "");
}

TEST_CASE("what an earlier job left is not taken for this one's", "[rendezvous]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "meeting";
    const int size = 4;
    // Jobs that lacked a rank, with other bytes: their ranks' files and rank 0's stay.
    meet(path, size, {0, 1, 3}, "earlier", 0.3);
    REQUIRE(files_in(directory / "") == 3);
    require_all(meet(path, size, all_of(size), "later", enough), "later");
    CHECK(files_in(directory / "") == 0);

    meet(path, size, {0, 2}, "earlier", 0.3);
    meet(path, size, {1, 2, 3}, "", 0.3);
    require_all(meet(path, size, all_of(size), "latest", enough), "latest");
    CHECK(files_in(directory / "") == 0);
}

TEST_CASE("damaged files and those of other sizes are passed over", "[rendezvous]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "meeting";
    const std::string garbage =
        GENERATE(std::string(), std::string("\0\xff\n", 3), std::string("train_qat_rendezvous 3 5 x00 5 6"),
                 std::string("train_qat_rendezvous 999999999 5 x00 5 6 7 end"),
                 std::string("train_qat_rendezvous 3 5 x0 5 6 7 end"), std::string("train_qat_rank 1 3 5 5"),
                 std::string("train_qat_rank 1 2 5 5 end"),
                 std::string("train_qat_rank 2 3 99999999999999999999999 5 end"));
    for (const char* name : {"", ".rank1", ".rank2"}) write(path + name, garbage);
    require_all(meet(path, 3, all_of(3), "id", enough), "id");
}

TEST_CASE("a missing rank is named", "[rendezvous]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "meeting";
    const std::vector<Outcome> two = meet(path, 5, {0, 1, 4}, "id", 0.3);
    CHECK(two[0].error.find("ranks 2, 3 of 5") != std::string::npos);
    CHECK(two[0].error.find(path) != std::string::npos);
    CHECK(two[0].error.find('\n') == std::string::npos);
    CHECK(two[1].error == "");
    CHECK(two[4].bytes == "id");
    const std::vector<Outcome> first = meet(path, 2, {1}, "id", 0.3);
    CHECK(first[1].error.find("rank 0 of 2 did not answer") != std::string::npos);
    const std::vector<Outcome> many = meet(path, 40, {0}, "id", 0.05);
    CHECK(many[0].error.find("1, 2, 3, 4, 5, 6, 7, 8 and 31 more of 40") != std::string::npos);
}

TEST_CASE("a directory that is not there, and a failure of make, are reported", "[rendezvous]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "nowhere/meeting";
    CHECK(meet(path, 2, {1}, "", enough)[1].error.find("cannot write " + path) != std::string::npos);
    CHECK_THROWS_WITH(
        share_by_file(
            directory / "x", 0, 2, []() -> std::string { throw std::runtime_error("no NCCL here"); }, enough),
        "no NCCL here");
}

TEST_CASE("a second process of the same rank is noticed", "[rendezvous]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "meeting";
    std::vector<Outcome> first, second;
    std::thread one([&] { first = meet(path, 3, {1}, "", 2); });
    std::thread two([&] { second = meet(path, 3, {1}, "", 2); });
    one.join();
    two.join();
    const std::string text = first[1].error + second[1].error;
    CHECK(text.find("another process is rank 1") != std::string::npos);
}
