#include "kernels/ranks/rendezvous.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

namespace train_qat {

namespace {

using Clock = std::chrono::steady_clock;

// The files are text, and end with this word; `bytes` in hexadecimal.
//     train_qat_rendezvous SIZE NUMBER_OF_RANK_0 BYTES NUMBER_0 NUMBER_1 ... end        (0: rank not seen
//     yet) train_qat_rank RANK SIZE NUMBER CONFIRMED end                  (CONFIRMED: rank 0's number, or 0
//     for none)
struct Offer {
    int size = 0;
    uint64_t number = 0;
    std::string bytes;
    std::vector<uint64_t> numbers;  // of all ranks, 0 for those not seen yet
};
struct Answer {
    int rank = 0, size = 0;
    uint64_t number = 0, confirmed = 0;
};

std::string to_hexadecimal(const std::string& bytes) {
    constexpr char digits[] = "0123456789abcdef";
    std::string text = "x";  // so that it is a word also without bytes
    for (const char c : bytes) {
        text += digits[static_cast<unsigned char>(c) >> 4];
        text += digits[static_cast<unsigned char>(c) & 15];
    }
    return text;
}

std::optional<std::string> from_hexadecimal(const std::string& text) {
    if (text.size() % 2 != 1 || text[0] != 'x' ||
        text.find_first_not_of("0123456789abcdef", 1) != std::string::npos)
        return std::nullopt;
    std::string bytes;
    for (size_t i = 1; i < text.size(); i += 2)
        bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
    return bytes;
}

std::string format(const Offer& offer) {
    std::ostringstream text;
    text << "train_qat_rendezvous " << offer.size << ' ' << offer.number << ' '
         << to_hexadecimal(offer.bytes);
    for (const uint64_t number : offer.numbers) text << ' ' << number;
    text << " end\n";
    return text.str();
}

std::string format(const Answer& answer) {
    std::ostringstream text;
    text << "train_qat_rank " << answer.rank << ' ' << answer.size << ' ' << answer.number << ' '
         << answer.confirmed << " end\n";
    return text.str();
}

// Nothing for a file that is missing or not whole, or somebody else's.
std::optional<Offer> read_offer(const std::string& path, int size) {
    std::ifstream file(path);
    std::string kind, bytes, end;
    Offer offer;
    if (!(file >> kind >> offer.size >> offer.number >> bytes) || kind != "train_qat_rendezvous" ||
        offer.size != size)
        return std::nullopt;
    offer.numbers.resize(static_cast<size_t>(size));
    for (uint64_t& number : offer.numbers)
        if (!(file >> number)) return std::nullopt;
    const std::optional<std::string> decoded = from_hexadecimal(bytes);
    if (!(file >> end) || end != "end" || !decoded) return std::nullopt;
    offer.bytes = *decoded;
    return offer;
}

std::optional<Answer> read_answer(const std::string& path, int rank, int size) {
    std::ifstream file(path);
    std::string kind, end;
    Answer answer;
    if (!(file >> kind >> answer.rank >> answer.size >> answer.number >> answer.confirmed >> end) ||
        kind != "train_qat_rank" || end != "end" || answer.rank != rank || answer.size != size ||
        answer.number == 0)
        return std::nullopt;
    return answer;
}

uint64_t random_number() {
    std::random_device device;
    const uint64_t number = (static_cast<uint64_t>(device()) << 32) | device();
    return std::max<uint64_t>(number, 1);
}

class Meeting {
  public:
    Meeting(const std::string& path, int rank, int size, double timeout_seconds)
        : path_(path),
          rank_(rank),
          size_(size),
          timeout_seconds_(timeout_seconds),
          deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                       std::chrono::duration<double>(timeout_seconds))),
          number_(random_number()) {}

    std::string offer(const std::string& bytes);
    std::string accept();

  private:
    std::string rank_path(int rank) const { return path_ + ".rank" + std::to_string(rank); }
    void replace(const std::string& path, const std::string& content) const;
    bool pause();
    std::string seconds() const {
        std::ostringstream text;
        text << timeout_seconds_ << " s";
        return text.str();
    }
    [[noreturn]] void give_up(const std::vector<Answer>& answers) const;

    const std::string path_;
    const int rank_, size_;
    const double timeout_seconds_;
    const Clock::time_point deadline_;
    const uint64_t number_;
    std::chrono::milliseconds pause_{5};
};

void Meeting::replace(const std::string& path, const std::string& content) const {
    const std::string temporary = path + "." + std::to_string(number_);
    std::ofstream file(temporary);
    file << content;
    file.close();
    if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
        const std::string reason = std::strerror(errno);
        std::remove(temporary.c_str());
        throw std::runtime_error("-rendezvous: cannot write " + path + ": " + reason +
                                 "; it must lie in a directory that all ranks can write to");
    }
}

// Waits a little, longer every time up to 0.2 s: a shared file system serves many ranks. False: too late.
bool Meeting::pause() {
    if (Clock::now() >= deadline_) return false;
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(pause_ * 2, std::chrono::milliseconds(200));
    return true;
}

void Meeting::give_up(const std::vector<Answer>& answers) const {
    constexpr int most = 8;
    std::string missing;
    int count = 0;
    for (int rank = 1; rank < size_; ++rank)
        if (answers[static_cast<size_t>(rank)].confirmed != number_ && ++count <= most)
            missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
    if (count > most) missing += " and " + std::to_string(count - most) + " more";
    throw std::runtime_error("-rendezvous " + path_ + ": rank" + (count > 1 ? "s " : " ") + missing + " of " +
                             std::to_string(size_) + " did not come within " + seconds() +
                             ": see their output, and whether they see the same file system");
}

std::string Meeting::offer(const std::string& bytes) {
    Offer offer{size_, number_, bytes, std::vector<uint64_t>(static_cast<size_t>(size_))};
    offer.numbers[0] = number_;
    std::vector<Answer> answers(static_cast<size_t>(size_));
    for (;;) {
        bool changed = false, all = true;
        for (int rank = 1; rank < size_; ++rank) {
            Answer& answer = answers[static_cast<size_t>(rank)];
            if (answer.confirmed == number_) continue;
            answer = read_answer(rank_path(rank), rank, size_).value_or(Answer{});
            all = all && answer.confirmed == number_;
            uint64_t& known = offer.numbers[static_cast<size_t>(rank)];
            if (answer.number == 0 || answer.number == known) continue;
            known = answer.number;
            changed = true;
        }
        if (all) break;
        if (changed) replace(path_, format(offer));
        if (!pause()) give_up(answers);
    }
    std::remove(path_.c_str());
    for (int rank = 1; rank < size_; ++rank) std::remove(rank_path(rank).c_str());
    return bytes;
}

std::string Meeting::accept() {
    Answer answer{rank_, size_, number_, 0};
    const std::string own = rank_path(rank_);
    replace(own, format(answer));
    for (;;) {
        const std::optional<Offer> offer = read_offer(path_, size_);
        if (offer && offer->numbers[static_cast<size_t>(rank_)] == number_) {
            answer.confirmed = offer->number;
            replace(own, format(answer));
            return offer->bytes;
        }
        if (!pause())
            throw std::runtime_error("-rendezvous " + path_ + ": rank 0 of " + std::to_string(size_) +
                                     " did not answer within " + seconds() +
                                     ": see its output, and whether it sees the same file system");
        // Rank 0 of an earlier job may have cleaned up, or another job use the same path.
        const std::optional<Answer> found = read_answer(own, rank_, size_);
        if (!found) replace(own, format(answer));
        if (found && found->number != number_)
            throw std::runtime_error("-rendezvous " + path_ + ": another process is rank " +
                                     std::to_string(rank_) + " there; give every job a path of its own");
    }
}

}  // namespace

std::string share_by_file(const std::string& path, int rank, int size,
                          const std::function<std::string()>& make, double timeout_seconds) {
    if (rank < 0 || rank >= size) throw std::logic_error("share_by_file: a rank that does not exist");
    if (size == 1) return make();
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored))
        throw std::runtime_error("-rendezvous " + path + ": is not a regular file; name a new one");
    Meeting meeting(path, rank, size, timeout_seconds);
    return rank == 0 ? meeting.offer(make()) : meeting.accept();
}

}  // namespace train_qat
