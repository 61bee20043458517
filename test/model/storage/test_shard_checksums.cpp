// Checksums of shards: kept as long as nothing was written to the file.
#include "model/storage/shard_checksums.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>
#include <system_error>
#include <thread>

#include "model/storage/checksum.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/shards.h"

namespace train_qat::test {
namespace {

namespace fs = std::filesystem;

// As if it had been written a while ago: no record is kept of a file that was just written. The time of its
// change cannot be set, so the test waits for that.
void let_rest() {
    ::usleep(2'200'000);
}

std::string bytes_behind_header(const std::string& path) {
    return read_bytes(path).substr(1024);
}

// While it lives no thread can be started: there is no place for its stack.
class NoThreads {
  public:
    NoThreads() {
        ::pthread_attr_init(&attributes_);
        ::pthread_getattr_default_np(&attributes_);
        ::pthread_attr_getstacksize(&attributes_, &stack_bytes_);
        set(size_t{1} << 47);
    }
    ~NoThreads() {
        set(stack_bytes_);
        ::pthread_attr_destroy(&attributes_);
    }
    NoThreads(const NoThreads&) = delete;
    NoThreads& operator=(const NoThreads&) = delete;

  private:
    void set(size_t bytes) {
        ::pthread_attr_setstacksize(&attributes_, bytes);
        ::pthread_setattr_default_np(&attributes_);
    }
    pthread_attr_t attributes_;
    size_t stack_bytes_ = 0;
};

TEST_CASE("checksums need no threads", "[shard_checksums]") {
    const TemporaryDirectory directory;
    std::vector<std::string> paths;
    for (const uint32_t i : {1u, 2u, 3u}) {
        paths.push_back(directory / ("s" + std::to_string(i) + ".bin"));
        write_shard(paths.back(), std::vector<uint32_t>(100 + i, i), 50, 7);
    }
    std::ostringstream log;
    std::vector<uint64_t> checksums;
    {
        const NoThreads none;
        REQUIRE_THROWS_AS(std::thread([] {}).detach(), std::system_error);
        checksums = checksums_of_shards(paths, 1024, directory / "out", log);
    }
    for (size_t i = 0; i < paths.size(); ++i)
        CHECK(checksums[i] == checksum_of(bytes_behind_header(paths[i])));
}

TEST_CASE("checksums are those of the tokens, whatever the records say", "[shard_checksums]") {
    const TemporaryDirectory directory;
    std::vector<std::string> paths;
    for (const uint32_t i : {1u, 2u, 3u}) {
        paths.push_back(directory / ("s" + std::to_string(i) + ".bin"));
        std::vector<uint32_t> tokens(5000 + i);
        for (size_t k = 0; k < tokens.size(); ++k) tokens[k] = static_cast<uint32_t>(k * k + i) % 5003;
        write_shard(paths.back(), tokens, 5003, 7);
    }
    fs::create_directory(directory / ".s3.bin.checksum");  // no place beside it
    std::ostringstream log;
    const std::string out = directory / "out";
    const auto checksums = [&] { return checksums_of_shards(paths, 1024, out, log); };
    const auto expected = [&] {
        std::vector<uint64_t> all;
        for (const std::string& path : paths) all.push_back(checksum_of(bytes_behind_header(path)));
        return all;
    };
    const std::string record = directory / ".s1.bin.checksum";
    CHECK(checksums() == expected());
    CHECK_FALSE(fs::exists(record));  // just written: another write could go unnoticed
    let_rest();
    CHECK(checksums() == expected());
    CHECK(fs::exists(record));
    CHECK(fs::exists(directory / ".s2.bin.checksum"));
    CHECK(std::distance(fs::directory_iterator(out + "/data_checksums"), fs::directory_iterator()) == 1);

    // Records are read: one that lies is believed.
    const uint64_t lie = 0x1234567890abcdefull;
    std::string text = read_bytes(record);
    text.replace(text.find(checksum_text(expected()[0])), 16, checksum_text(lie));
    write_bytes(record, text);
    CHECK(checksums()[0] == lie);
    for (const std::string& damaged : {std::string("{"), text.substr(0, text.size() / 2), std::string("[]"),
                                       std::string(R"({"file": {}, "xxh3_64": 5})")}) {
        write_bytes(record, damaged);
        CHECK(checksums() == expected());
        CHECK(read_bytes(record) != damaged);  // written anew
    }

    // One token in the middle, the old times of modification: the time of change tells.
    struct stat before;
    REQUIRE(::stat(paths[1].c_str(), &before) == 0);
    const uint64_t old = expected()[1];
    std::string bytes = read_bytes(paths[1]);
    bytes[bytes.size() / 2] ^= 1;
    write_bytes(paths[1], bytes);
    const timespec times[] = {before.st_atim, before.st_mtim};
    REQUIRE(::utimensat(AT_FDCWD, paths[1].c_str(), times, 0) == 0);
    CHECK(expected()[1] != old);
    CHECK(checksums() == expected());
    // Another header: the same tokens.
    bytes[4 * 20] = 9;
    write_bytes(paths[1], bytes);
    const auto all = expected();
    CHECK(checksums() == all);
    CHECK(log.str().empty());
}

TEST_CASE("a shard that cannot be read is named", "[shard_checksums]") {
    const TemporaryDirectory directory;
    std::ostringstream log;
    CHECK(mentions(
        error_of([&] { checksums_of_shards({directory / "none.bin"}, 1024, directory / "out", log); }),
        {"none.bin: cannot inspect"}));
    CHECK(snapshot(directory / "").empty());
}

}  // namespace
}  // namespace train_qat::test
