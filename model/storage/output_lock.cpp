#include "model/storage/output_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <utility>

#include "model/storage/checkpoint_directory.h"
#include "model/units.h"

namespace train_qat {

namespace fs = std::filesystem;

namespace {

// Creates `directory`; returns the first of its folders that was not there.
std::string create_output_directory(const std::string& directory) {
    std::error_code error;
    if (fs::exists(directory, error) && !fs::is_directory(directory, error))
        throw std::runtime_error("-o " + directory + ": is not a directory");
    std::string first;
    for (fs::path folder = fs::path(directory).lexically_normal();
         !folder.empty() && !fs::exists(folder, error); folder = folder.parent_path())
        if (folder.has_filename()) first = folder.string();
    fs::create_directories(directory, error);
    if (error) throw_file_error("-o " + directory, "cannot create directory: " + error.message());
    return first;
}

// Of the empty ones from `directory` up to `first`.
void remove_created_directories(const std::string& directory, const std::string& first) {
    if (first.empty()) return;
    for (fs::path folder = fs::path(directory).lexically_normal();; folder = folder.parent_path()) {
        if (folder.has_filename() && ::rmdir(folder.c_str()) != 0) return;
        if (folder.string() == first || folder.empty()) return;
    }
}

// " (a run, process 123 on host, since 2025-01-31T12:00:00Z)"; empty while it is being written.
std::string holder_of(const std::string& path) {
    try {
        const auto json = nlohmann::ordered_json::parse(read_text_file(path), nullptr, false);
        return " (a " + json.at("worker").get<std::string>() + ", process " + json.at("process").dump() +
               " on " + json.at("host").get<std::string>() + ", since " + json.at("time").get<std::string>() +
               ")";
    } catch (const std::exception&) {
        return "";
    }
}

}  // namespace

nlohmann::ordered_json process_signature(const std::string& worker) {
    char host[256] = "?";
    ::gethostname(host, sizeof host - 1);
    return {{"worker", worker}, {"host", host}, {"process", ::getpid()}, {"time", utc_time()}};
}

OutputLock::OutputLock(const std::string& output_directory, const std::string& worker)
    : directory_(output_directory),
      path_(output_directory + "/.lock"),
      first_created_(create_output_directory(output_directory)) {
    while (!take()) {
    }
    if (!held_) return;
    // Only for the message of others.
    const std::string text =
        process_signature(worker).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    if (::ftruncate(descriptor_, 0) == 0)
        write_all(descriptor_, path_, text.data(), static_cast<int64_t>(text.size()));
    clean_up_after_dead_runs(directory_, true);
}

int OutputLock::open_lock_file() {
    const int created = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    created_ = created >= 0;
    return created_ ? created : ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
}

// False: the file was removed by the one who held it, while this process waited for its lock.
bool OutputLock::take() {
    FileDescriptor file(open_lock_file());
    if (file.get() < 0) {
        const int error = errno;
        remove_created_directories(directory_, first_created_);
        throw_file_error("-o " + directory_, std::string("cannot be written to: ") + std::strerror(error));
    }
    if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno == EINTR) return false;
        if (errno == EWOULDBLOCK)
            throw std::runtime_error("-o " + directory_ + ": another process is at work in it" +
                                     holder_of(path_) + "; wait for it or end it, or choose another -o");
        std::cerr << "train_qat: warning: -o " << directory_ << ": this file system has no locks ("
                  << std::strerror(errno) << "); see to it that no other process writes there" << std::endl;
        descriptor_ = file.release();
        return true;
    }
    descriptor_ = file.release();
    held_ = is_file_of_path();
    if (!held_) ::close(std::exchange(descriptor_, -1));
    return held_;
}

bool OutputLock::is_file_of_path() const {
    struct stat own, there;
    return ::fstat(descriptor_, &own) == 0 && ::stat(path_.c_str(), &there) == 0 &&
           own.st_ino == there.st_ino && own.st_dev == there.st_dev;
}

OutputLock::~OutputLock() {
    // Without locks it may be another process's.
    if (held_ || (descriptor_ >= 0 && created_)) ::unlink(path_.c_str());
    if (descriptor_ >= 0) ::close(descriptor_);
    remove_created_directories(directory_, first_created_);
}

}  // namespace train_qat
