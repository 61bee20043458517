// One process at a time in an output directory, and what the next one finds.
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <sstream>

#include "model/storage/output_lock.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/sweep_fixture.h"

namespace {

bool has_locks = true;

}  // namespace

// In place of the system's: some file systems have none.
extern "C" int flock(int file, int operation) noexcept {
    if (has_locks) return static_cast<int>(::syscall(SYS_flock, file, operation));
    errno = ENOLCK;
    return -1;
}

namespace train_qat::test {
namespace {

namespace fs = std::filesystem;

TEST_CASE("without locks a process removes only what it has created", "[output_lock]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "run";
    std::ostringstream warnings;
    std::streambuf* const errors = std::cerr.rdbuf(warnings.rdbuf());
    has_locks = false;
    {
        const OutputLock first(output, "run");
        CHECK_FALSE(first.is_held());
        { const OutputLock second(output, "run"); }
        CHECK(fs::exists(output + "/.lock"));
    }
    CHECK_FALSE(fs::exists(output));
    has_locks = true;
    std::cerr.rdbuf(errors);
    CHECK(warnings.str().find("this file system has no locks") != std::string::npos);
}

TEST_CASE("one process at a time is at work in a directory", "[output_lock]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "deep/run";
    fs::create_directories(output);
    write_bytes(output + "/run.json", "{}");
    {
        const OutputLock lock(output, "sweep");
        CHECK(lock.is_held());
        const auto before = snapshot(output);
        const std::string error = error_of([&] { OutputLock second(output, "run"); });
        CHECK(mentions(error, {"-o " + output + ": another process is at work in it (a sweep, process " +
                                   std::to_string(::getpid()) + " on ",
                               ", since 20", "choose another -o"}));
        CHECK(snapshot(output) == before);
        CHECK(error_of([&] { OutputLock other(directory / "other", "run"); }).empty());
        CHECK_FALSE(fs::exists(directory / "other"));
    }
    CHECK(snapshot(output).size() == 1);  // nothing of the lock is left
    CHECK(error_of([&] { OutputLock again(output, "run"); }).empty());
}

TEST_CASE("the lock of a killed process is free", "[output_lock]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "run";
    int ready[2];
    REQUIRE(::pipe(ready) == 0);
    const pid_t child = fork_quietly();
    if (child == 0) {
        const OutputLock lock(output, "run");
        if (::write(ready[1], "!", 1) != 1) ::_exit(1);
        ::pause();
        ::_exit(0);
    }
    char byte;
    REQUIRE(::read(ready[0], &byte, 1) == 1);
    CHECK(
        mentions(error_of([&] { OutputLock second(output, "run"); }), {"process " + std::to_string(child)}));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    CHECK(fs::exists(output + "/.lock"));
    CHECK(error_of([&] { OutputLock again(output, "run"); }).empty());
    CHECK_FALSE(fs::exists(output + "/.lock"));
    ::close(ready[0]);
    ::close(ready[1]);
}

TEST_CASE("directories that a run creates and leaves empty go with its lock", "[output_lock]") {
    const TemporaryDirectory directory;
    fs::create_directory(directory / "there");
    for (const char* name : {"there/a/b/c", "there/a/b/", "./there/../there/x"})
        CHECK(error_of([&] { OutputLock lock(directory / name, "run"); }).empty());
    CHECK(snapshot(directory / "there").empty());
    CHECK(fs::exists(directory / "there"));
    {
        const OutputLock lock(directory / "there/a/b", "run");
        write_bytes(directory / "there/a/kept", "");
    }
    CHECK(fs::exists(directory / "there/a/kept"));
    CHECK_FALSE(fs::exists(directory / "there/a/b"));
    directory.write("file", "");
    CHECK(mentions(error_of([&] { OutputLock(directory / "file", "run"); }),
                   {"-o ", "file: is not a directory"}));
    CHECK(mentions(error_of([&] { OutputLock(directory / "file/below", "run"); }), {"-o ", "file/below"}));
}

TEST_CASE("with its lock a run cleans up after killed ones, whoever has their numbers now", "[output_lock]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "run";
    for (const char* name : {".step_00000030.partial-1", ".step_00000020.replaced-1", "step_00000010"})
        fs::create_directories(output + "/" + name);
    for (const char* name : {"run.json.partial", "metrics.jsonl.partial", "notes.partial", "metrics.jsonl"})
        write_bytes(output + "/" + name, name);
    { const OutputLock lock(output, "run"); }
    std::vector<std::string> left;
    for (const auto& [name, bytes] : snapshot(output)) left.push_back(name);
    CHECK(left ==
          std::vector<std::string>{"metrics.jsonl", "notes.partial", "step_00000010", "step_00000020"});
}

}  // namespace
}  // namespace train_qat::test
