// What users name as a file and is none: refused at once, and said what it is.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "data/file_bytes.h"
#include "data/hellaswag.h"
#include "data/shard.h"
#include "data/tokenizer.h"
#include "model/storage/files.h"
#include "test/support/catch.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

void make_socket(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    const FileDescriptor made(::socket(AF_UNIX, SOCK_STREAM, 0));
    REQUIRE(::bind(made.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
}

}  // namespace

TEST_CASE("only regular files are read", "[data]") {
    const TemporaryDirectory directory;
    std::filesystem::create_directory(directory / "folder");
    REQUIRE(::mkfifo((directory / "pipe").c_str(), 0600) == 0);
    make_socket(directory / "socket");
    std::filesystem::create_symlink("/dev/zero", directory / "device");
    for (const auto& [name, kind] :
         std::vector<std::pair<std::string, std::string>>{{"folder", "a folder"},
                                                          {"pipe", "a pipe"},
                                                          {"socket", "a socket"},
                                                          {"device", "a device"},
                                                          {"absent", "No such file"}}) {
        const std::string path = directory / name;
        std::string why_not;
        CHECK(open_regular_file(path, why_not) == -1);
        CHECK(why_not.find(kind) != std::string::npos);
        for (const std::string& error :
             {error_of([&] { read_file(path, "the thing", "do something"); }),
              error_of([&] { Shard shard(path); }), error_of([&] { InputFile file(path); }),
              error_of([&] { read_hellaswag(path, 100); })}) {
            INFO(error);
            CHECK(error.starts_with(path + ": "));
            CHECK(error.find(kind) != std::string::npos);
            CHECK(error.find('\n') == std::string::npos);
        }
    }
    directory.write("file", std::string("a\0b", 3));
    CHECK(read_file(directory / "file", "the thing", "do something") == std::string("a\0b", 3));
    std::string why_not;
    const FileDescriptor file(open_regular_file(directory / "file", why_not));
    CHECK(file.get() >= 0);
    CHECK((::fcntl(file.get(), F_GETFD) & FD_CLOEXEC) != 0);
}
