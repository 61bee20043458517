#include "model/storage/shard_checksums.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "model/storage/checksum.h"
#include "model/storage/files.h"
#include "model/units.h"

namespace train_qat {

namespace fs = std::filesystem;

namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned most_threads = 8;
constexpr int64_t nanoseconds = 1'000'000'000;

int64_t in_nanoseconds(const timespec& time) {
    return static_cast<int64_t>(time.tv_sec) * nanoseconds + time.tv_nsec;
}

// What of a file no write leaves as it was.
nlohmann::json state_of(const std::string& path) {
    struct stat status;
    if (::stat(path.c_str(), &status) != 0)
        throw_file_error(path, std::string("cannot inspect: ") + std::strerror(errno));
    return {{"bytes", static_cast<int64_t>(status.st_size)},
            {"inode", static_cast<uint64_t>(status.st_ino)},
            {"modified", in_nanoseconds(status.st_mtim)},
            {"changed", in_nanoseconds(status.st_ctim)}};
}

// The clock of a file system may tick coarsely: a file may be written again within a tick of its last write.
bool has_rested(const nlohmann::json& state) {
    timespec now;
    ::clock_gettime(CLOCK_REALTIME, &now);
    const int64_t last = std::max(state["modified"].get<int64_t>(), state["changed"].get<int64_t>());
    return in_nanoseconds(now) - last > 2 * nanoseconds;
}

// Where the record of a shard may be, the better place first.
std::vector<std::string> record_paths(const std::string& path, const std::string& directory) {
    const fs::path whole = fs::absolute(path).lexically_normal();
    return {(whole.parent_path() / ("." + whole.filename().string() + ".checksum")).string(),
            directory + "/data_checksums/" + checksum_text(checksum_of(whole.string())) + ".json"};
}

// Whether a record of this state of the file is there.
bool read_record(const std::string& record, const nlohmann::json& state, uint64_t& checksum) {
    try {
        const auto json = nlohmann::json::parse(read_text_file(record), nullptr, false);
        if (!json.is_object() || json.value("file", nlohmann::json()) != state) return false;
        const std::string text = json.at("xxh3_64").get<std::string>();
        size_t read = 0;
        checksum = std::stoull(text, &read, 16);
        return text.size() == 16 && read == 16;
    } catch (const std::exception&) {
        return false;  // none, or none that anything can be read from
    }
}

void write_record(const std::vector<std::string>& places, const nlohmann::json& state, uint64_t checksum) {
    const std::string text =
        nlohmann::ordered_json{{"xxh3_64", checksum_text(checksum)}, {"file", state}}.dump() + "\n";
    try {
        return write_file_atomically(places[0], text);
    } catch (const std::runtime_error&) {  // not ours to write to
    }
    std::error_code error;
    fs::create_directories(parent_directory(places[1]), error);
    write_file_atomically(places[1], text);
}

class Computation {
  public:
    Computation(const std::vector<std::string>& paths, int64_t header_bytes, const std::string& directory,
                std::ostream& log)
        : paths_(paths),
          header_bytes_(header_bytes),
          directory_(directory),
          log_(log),
          checksums_(paths.size()),
          states_(paths.size()) {
        for (size_t i = 0; i < paths.size(); ++i) {
            states_[i] = state_of(paths[i]);
            const auto places = record_paths(paths[i], directory);
            if (std::none_of(places.begin(), places.end(), [&](const std::string& record) {
                    return read_record(record, states_[i], checksums_[i]);
                })) {
                missing_.push_back(i);
                bytes_ += states_[i]["bytes"].get<int64_t>();
            }
        }
    }

    std::vector<uint64_t> run() {
        const size_t wanted = std::min<size_t>(
            {missing_.size(), most_threads, std::max(1u, std::thread::hardware_concurrency())});
        {
            std::vector<std::jthread> threads;  // which are waited for
            try {
                while (threads.size() < wanted) threads.emplace_back([this] { work(); });
            } catch (const std::system_error&) {  // no more threads for this user or container
            }
            if (threads.empty()) work();
        }
        if (error_) std::rethrow_exception(error_);
        return checksums_;
    }

  private:
    void work() {
        try {
            for (size_t next = next_++; next < missing_.size() && !failed_; next = next_++)
                compute(missing_[next]);
        } catch (...) {
            const std::lock_guard lock(mutex_);
            if (!error_) error_ = std::current_exception();
            failed_ = true;
        }
    }

    void compute(size_t i) {
        const InputFile file(paths_[i]);
        std::vector<char> buffer(int64_t{8} << 20);
        Checksum checksum;
        for (int64_t offset = header_bytes_; offset < file.bytes();) {
            const int64_t count =
                std::min<int64_t>(file.bytes() - offset, static_cast<int64_t>(buffer.size()));
            file.read_at(offset, buffer.data(), count);
            checksum.update(buffer.data(), count);
            offset += count;
            say_progress(count);
        }
        if (state_of(paths_[i]) != states_[i])
            throw_file_error(paths_[i],
                             "has changed while it was read; start again when nothing writes to it");
        checksums_[i] = checksum.value();
        if (has_rested(states_[i]))
            write_record(record_paths(paths_[i], directory_), states_[i], checksums_[i]);
    }

    void say_progress(int64_t count) {
        const std::lock_guard lock(mutex_);
        done_ += count;
        if (Clock::now() < next_line_) return;
        next_line_ = Clock::now() + std::chrono::seconds(10);
        log_ << "data: reading " << missing_.size()
             << " shards for their checksums, once: " << format_bytes(done_) << " of " << format_bytes(bytes_)
             << std::endl;
    }

    const std::vector<std::string>& paths_;
    const int64_t header_bytes_;
    const std::string directory_;
    std::ostream& log_;
    std::vector<uint64_t> checksums_;
    std::vector<nlohmann::json> states_;
    std::vector<size_t> missing_;
    int64_t bytes_ = 0, done_ = 0;
    std::atomic<size_t> next_ = 0;
    std::atomic<bool> failed_ = false;
    std::mutex mutex_;
    std::exception_ptr error_;
    Clock::time_point next_line_ = Clock::now() + std::chrono::seconds(2);
};

}  // namespace

std::vector<uint64_t> checksums_of_shards(const std::vector<std::string>& paths, int64_t header_bytes,
                                          const std::string& directory, std::ostream& log) {
    return Computation(paths, header_bytes, directory, log).run();
}

}  // namespace train_qat
