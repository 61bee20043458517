#include "kernels/cuda/platform/tuning_table.h"

#include <fstream>
#include <stdexcept>
#include <utility>

namespace train_qat {

static constexpr const char* title = "train_qat tuning table 1: ";

TuningTable::TuningTable(std::string file, std::string device)
    : file_(std::move(file)), device_(std::move(device)) {
    std::ifstream stream(file_);
    std::string line;
    if (file_.empty() || !stream || !std::getline(stream, line)) return;
    if (line.rfind(title, 0) != 0)
        throw std::runtime_error(file_ + ": is not a tuning table of train_qat; move it out of the way");
    valid_ = line == title + device_;
    std::string key, choice;
    // A line that was cut off by a crash has no choice, or half of one: sizes and names are checked by the
    // reader.
    while (valid_ && stream >> key >> choice) choices_[key] = choice;
}

const std::string* TuningTable::find(const std::string& key) const {
    const auto entry = choices_.find(key);
    return entry == choices_.end() ? nullptr : &entry->second;
}

void TuningTable::set(const std::string& key, const std::string& choice) {
    choices_[key] = choice;
    if (file_.empty()) return;
    std::ofstream stream(file_, valid_ ? std::ios::app : std::ios::trunc);
    if (!valid_) stream << title << device_ << "\n";
    valid_ = true;
    stream << key << " " << choice << std::endl;
    if (!stream) throw std::runtime_error(file_ + ": cannot write the tuning table");
}

}  // namespace train_qat
