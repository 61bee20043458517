#include "kernels/cuda/platform/tuning_table.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace train_qat {
namespace {

constexpr std::string_view title = "train_qat tuning table 1: ";

// False where the disk refused; errno says why.
bool replace_end(const std::string& file, int64_t offset, const std::string& text) {
    const int descriptor = ::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0) return false;
    const bool written =
        ::ftruncate(descriptor, offset) == 0 &&
        ::pwrite(descriptor, text.data(), text.size(), offset) == static_cast<ssize_t>(text.size()) &&
        ::fsync(descriptor) == 0;
    const int error = errno;
    ::close(descriptor);
    errno = error;
    return written;
}

}  // namespace

TuningTable::TuningTable(std::string file, std::string device)
    : file_(std::move(file)), device_(std::move(device)) {
    if (file_.empty()) return;
    std::error_code ignored;
    if (std::filesystem::exists(file_, ignored) && !std::filesystem::is_regular_file(file_, ignored))
        throw std::runtime_error(file_ + ": is no tuning table of train_qat, and not even a regular file");
    std::ifstream stream(file_, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    // The start of a title is a table whose first line was cut off.
    if (!text.starts_with(title) && !title.starts_with(text))
        throw std::runtime_error(file_ + ": is not a tuning table of train_qat; move it out of the way");
    const std::string first_line = std::string(title) + device_ + "\n";
    if (!text.starts_with(first_line)) return;
    whole_bytes_ = static_cast<int64_t>(text.rfind('\n') + 1);
    for (size_t begin = first_line.size(), end; begin < text.size(); begin = end + 1) {
        end = text.find('\n', begin);
        if (end == std::string::npos) break;
        const std::string line = text.substr(begin, end - begin);
        const size_t space = line.find(' ');
        if (space != std::string::npos && line.find(' ', space + 1) == std::string::npos)
            choices_[line.substr(0, space)] = line.substr(space + 1);
    }
}

const std::string* TuningTable::find(const std::string& key) const {
    const auto entry = choices_.find(key);
    return entry == choices_.end() ? nullptr : &entry->second;
}

void TuningTable::set(const std::string& key, const std::string& choice) {
    choices_[key] = choice;
    if (file_.empty()) return;
    const std::string first_line = whole_bytes_ == 0 ? std::string(title) + device_ + "\n" : "";
    const std::string text = first_line + key + " " + choice + "\n";
    if (!replace_end(file_, whole_bytes_, text))
        throw std::runtime_error(file_ + ": cannot write the tuning table: " + std::strerror(errno));
    whole_bytes_ += static_cast<int64_t>(text.size());
}

}  // namespace train_qat
