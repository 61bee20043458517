// The communicator over MPI. MPI moves messages between pairs of ranks; the collectives are built on them
// here, for two things that MPI's own do not promise: sums in the order of ranks, so that the same ranks
// always form the same bits, and an end with the names of the missing ranks when some do not take part. The
// volume is that of the best algorithms: each rank sends what others need of it, once.
//
// A thread of its own does all the work, so that the backward pass goes on meanwhile.
#if defined(TRAIN_QAT_MPI)

#include "kernels/ranks/mpi_communicator.h"

// MPI's C interface alone: its C++ one was removed from the standard.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/ranks/task_thread.h"

namespace train_qat {

namespace {

// Bytes of one message: pieces this large reach the bandwidth, and what is received for sums stays small.
constexpr int64_t piece_bytes = int64_t{4} << 20;

void check_mpi(int status, const char* what) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(status, text, &length);
    throw RankError(std::string("MPI: ") + what +
                    " failed: " + std::string(text, static_cast<size_t>(length)));
}

std::string library_version() {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length);
    const std::string version(text, static_cast<size_t>(length));
    return version.substr(0, version.find_first_of(",\n"));
}

// An MPI communicator of our own.
class OwnComm {
  public:
    explicit OwnComm(MPI_Comm communicator) : communicator_(communicator) {}
    ~OwnComm() { MPI_Comm_free(&communicator_); }
    OwnComm(const OwnComm&) = delete;
    OwnComm& operator=(const OwnComm&) = delete;
    MPI_Comm get() const { return communicator_; }

  private:
    MPI_Comm communicator_;
};

// Messages on their way, and whom each is from or for.
//
// A rank that is waited for may itself wait for another one, which is the one to name. So before a rank gives
// up it asks those that it waits for: whoever waits in turn answers, whoever has died or hangs does not.
class Messages {
  public:
    // names: of the ranks in messages for people, their numbers in the whole job.
    Messages(MPI_Comm communicator, int rank, std::vector<int> names, double timeout_seconds)
        : communicator_(communicator),
          rank_(rank),
          names_(std::move(names)),
          timeout_seconds_(timeout_seconds) {}

    void send(const void* data, int64_t bytes, int to) {
        MPI_Request request;
        check_mpi(MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to, data_tag, communicator_, &request),
                  "a send");
        add(request, to);
    }
    void receive(void* data, int64_t bytes, int from) {
        MPI_Request request;
        check_mpi(MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, data_tag, communicator_, &request),
                  "a receive");
        add(request, from);
    }

    // Looks again and again, ever less often, so that waiting ranks leave the processors to others.
    void wait_for_all(const char* collective) {
        constexpr auto first_pause = std::chrono::microseconds(20),
                       longest_pause = std::chrono::microseconds(500);
        constexpr int first_looks = 100, most_questions = 20;
        // More seconds between two looks: this process itself was stopped, which says nothing of the others.
        constexpr double longest_look = 1;
        Clock::time_point last_look = Clock::now();
        double waited = 0;  // seconds without progress
        std::vector<int> finished(requests_.size());
        int quick_looks = first_looks, questions = 0;
        auto pause = first_pause;
        for (size_t open = requests_.size(); open > 0;) {
            int count = 0;
            check_mpi(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count,
                                   finished.data(), MPI_STATUSES_IGNORE),
                      collective);
            if (count > 0) {
                open -= static_cast<size_t>(count);
                waited = 0;
                last_look = Clock::now();
            } else if (quick_looks > 0) {
                --quick_looks;
                std::this_thread::yield();
            } else {
                answer_questions();
                std::this_thread::sleep_for(pause);
                pause = std::min(pause * 2, longest_pause);
                waited += std::min(seconds_since(last_look), longest_look);
                last_look = Clock::now();
                if (waited <= timeout_seconds_) continue;
                const std::set<int> silent = without_answer(open_peers());
                if (!silent.empty() || ++questions == most_questions)
                    give_up(collective, silent.empty() ? open_peers() : silent);
                waited = 0;  // those wait too: one that knows for whom will say so
                last_look = Clock::now();
            }
        }
        requests_.clear();
        peers_.clear();
    }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr int data_tag = 1, question_tag = 2, answer_tag = 3;

    static double seconds_since(Clock::time_point start) {
        return std::chrono::duration<double>(Clock::now() - start).count();
    }

    void add(MPI_Request request, int peer) {
        requests_.push_back(request);
        peers_.push_back(peer);
    }

    std::set<int> open_peers() const {
        std::set<int> peers;
        for (size_t i = 0; i < requests_.size(); ++i)
            if (requests_[i] != MPI_REQUEST_NULL) peers.insert(peers_[i]);
        return peers;
    }

    // An empty message, which needs no buffer that would have to outlive it.
    void send_empty(int to, int tag) {
        MPI_Request request;
        check_mpi(MPI_Isend(nullptr, 0, MPI_BYTE, to, tag, communicator_, &request), "a question");
        check_mpi(MPI_Request_free(&request), "a question");
    }

    // The sender of an empty message that has come, if one has.
    std::optional<int> receive_empty(int tag) {
        int there = 0;
        MPI_Status status;
        check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, tag, communicator_, &there, &status), "a question");
        if (there == 0) return std::nullopt;
        check_mpi(MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, tag, communicator_, MPI_STATUS_IGNORE),
                  "a question");
        return status.MPI_SOURCE;
    }

    void answer_questions() {
        while (const std::optional<int> asking = receive_empty(question_tag)) send_empty(*asking, answer_tag);
    }

    // Those of the ranks that do not answer for a while.
    std::set<int> without_answer(std::set<int> peers) {
        constexpr double patience_seconds = 2;
        while (receive_empty(answer_tag)) {  // late ones, to earlier questions
        }
        for (int peer : peers) send_empty(peer, question_tag);
        const Clock::time_point start = Clock::now();
        while (!peers.empty() && seconds_since(start) < patience_seconds) {
            answer_questions();
            while (const std::optional<int> answering = receive_empty(answer_tag)) peers.erase(*answering);
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        // To let others that ask now know that this rank only waits.
        while (seconds_since(start) < patience_seconds / 4) {
            answer_questions();
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return peers;
    }

    [[noreturn]] void give_up(const char* collective, const std::set<int>& peers) const {
        std::string text;
        for (int peer : peers) text += (text.empty() ? "" : ", ") + std::to_string(names_[peer]);
        throw RankError("rank " + std::to_string(names_[rank_]) + ": no answer from rank " + text + " for " +
                        std::to_string(static_cast<int64_t>(timeout_seconds_)) + " s (" + collective +
                        "): it has died or hangs; -rank_timeout sets how long to wait");
    }

    MPI_Comm communicator_;
    int rank_;
    std::vector<int> names_;
    double timeout_seconds_;
    std::vector<MPI_Request> requests_;
    std::vector<int> peers_;
};

// A part of one rank's rows that fits into a message; may be empty.
struct Piece {
    char* data;
    int64_t bytes;
    int owner;
};
// Pieces that travel together: the same on all ranks.
using Round = std::vector<Piece>;

std::vector<Round> rounds_of(std::span<const RankRows> arrays, int ranks) {
    std::vector<Round> rounds(1);
    int64_t in_round = 0;  // bytes of the rank with the most
    for (const RankRows& array : arrays) {
        const int64_t most = (array.rows + ranks - 1) / ranks * array.row_bytes;
        for (int64_t begin = 0; begin < most; begin += piece_bytes) {
            const int64_t bytes = std::min(piece_bytes, most - begin);
            if (in_round > 0 && in_round + bytes > piece_bytes) rounds.emplace_back(), in_round = 0;
            in_round += bytes;
            for (int owner = 0; owner < ranks; ++owner) {
                const int64_t first = first_row(array.rows, owner, ranks) * array.row_bytes + begin;
                const int64_t end = first_row(array.rows, owner + 1, ranks) * array.row_bytes;
                const int64_t size = std::clamp<int64_t>(end - first, 0, bytes);
                if (size > 0) rounds.back().push_back({static_cast<char*>(array.data) + first, size, owner});
            }
        }
    }
    return rounds;
}

class MpiCommunicator final : public Communicator {
  public:
    MpiCommunicator(MPI_Comm communicator, int rank, std::vector<int> names, double timeout_seconds)
        : Communicator(rank, static_cast<int>(names.size())),
          communicator_(communicator),
          messages_(communicator, rank, std::move(names), timeout_seconds) {}

    bool recordable() const override { return size() == 1; }
    std::string describe() const override {
        return std::to_string(size()) + (size() == 1 ? " rank" : " ranks") + " over MPI (" +
               library_version() + ")";
    }

  private:
    void start_reduce_scatter(std::span<const RankRows> arrays) override {
        thread_.add([this, rounds = rounds_of(arrays, size())] {
            for (const Round& round : rounds) reduce(round);
        });
    }

    void start_all_gather(std::span<const RankRows> arrays) override {
        thread_.add([this, rounds = rounds_of(arrays, size())] {
            for (const Round& round : rounds) gather(round);
        });
    }

    void start_broadcast(void* data, int64_t bytes, int root) override {
        thread_.add([this, data, bytes, root] {
            for (int64_t begin = 0; begin < bytes; begin += piece_bytes) {
                char* const piece = static_cast<char*>(data) + begin;
                const int64_t count = std::min(piece_bytes, bytes - begin);
                if (rank() != root) messages_.receive(piece, count, root);
                for (int other = 0; other < size() && rank() == root; ++other)
                    if (other != root) messages_.send(piece, count, other);
                messages_.wait_for_all("broadcast");
            }
        });
    }

    void order_after() override { thread_.wait(); }

    void gather_host_rows(void* data, int64_t bytes) override {
        const RankRows rows{data, size(), bytes};
        start_all_gather({&rows, 1});
        thread_.wait();
    }

    void reduce(const Round& round) {
        int64_t own_floats = 0;
        for (const Piece& piece : round)
            if (piece.owner == rank()) own_floats += piece.bytes / static_cast<int64_t>(sizeof(float));
        received_.resize(static_cast<size_t>(own_floats * size()));
        int64_t place = 0;
        for (const Piece& piece : round) {
            if (piece.owner != rank()) {
                messages_.send(piece.data, piece.bytes, piece.owner);
                continue;
            }
            for (int other = 0; other < size(); ++other)
                if (other != rank())
                    messages_.receive(&received_[other * own_floats + place], piece.bytes, other);
            place += piece.bytes / static_cast<int64_t>(sizeof(float));
        }
        messages_.wait_for_all("reduce_scatter");
        place = 0;
        for (const Piece& piece : round) {
            if (piece.owner != rank()) continue;
            const int64_t count = piece.bytes / static_cast<int64_t>(sizeof(float));
            add_in_order_of_ranks(reinterpret_cast<float*>(piece.data), count, own_floats, place);
            place += count;
        }
    }

    // own[k] becomes the sum over ranks of their numbers, ours among them in our place.
    void add_in_order_of_ranks(float* own, int64_t count, int64_t stride, int64_t place) {
        float* const ours = &received_[rank() * stride + place];
        std::copy(own, own + count, ours);
        const float* const first = &received_[place];
        std::copy(first, first + count, own);
        for (int other = 1; other < size(); ++other) {
            const float* const theirs = &received_[other * stride + place];
            for (int64_t k = 0; k < count; ++k) own[k] += theirs[k];
        }
    }

    void gather(const Round& round) {
        for (const Piece& piece : round) {
            if (piece.owner != rank()) {
                messages_.receive(piece.data, piece.bytes, piece.owner);
                continue;
            }
            for (int other = 0; other < size(); ++other)
                if (other != rank()) messages_.send(piece.data, piece.bytes, other);
        }
        messages_.wait_for_all("all_gather");
    }

    const OwnComm communicator_;
    Messages messages_;
    std::vector<float> received_;  // (size, own floats of a round)
    TaskThread thread_;            // last: it uses the members above
};

std::unique_ptr<Communicator> make_communicator(MPI_Comm communicator, double timeout_seconds) {
    // A mismatch of ranks is an error that names the operation, not the end of the process.
    check_mpi(MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    int rank = 0, size = 1, name = 0;
    check_mpi(MPI_Comm_rank(communicator, &rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(communicator, &size), "MPI_Comm_size");
    check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &name), "MPI_Comm_rank");
    std::vector<int> names(static_cast<size_t>(size));
    check_mpi(MPI_Allgather(&name, 1, MPI_INT, names.data(), 1, MPI_INT, communicator), "MPI_Allgather");
    return std::make_unique<MpiCommunicator>(communicator, rank, std::move(names), timeout_seconds);
}

}  // namespace

std::string mpi_unavailable() {
    return "";
}

MpiSession::MpiSession() {
    int provided = 0;
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS)
        throw std::runtime_error("MPI cannot start; see its message above");
    if (provided < MPI_THREAD_MULTIPLE)
        throw std::runtime_error(library_version() +
                                 " does not allow several threads (MPI_THREAD_MULTIPLE); use an MPI that was "
                                 "built with them");
}

MpiSession::~MpiSession() {
    MPI_Finalize();
}

std::unique_ptr<Communicator> MpiSession::communicator(double timeout_seconds) const {
    MPI_Comm copy;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &copy), "MPI_Comm_dup");
    return make_communicator(copy, timeout_seconds);
}

std::unique_ptr<Communicator> MpiSession::group_communicator(int group, double timeout_seconds) const {
    int rank = 0;
    check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
    MPI_Comm part;
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, group, rank, &part), "MPI_Comm_split");
    return make_communicator(part, timeout_seconds);
}

void MpiSession::abort(int exit_code) const {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
}

}  // namespace train_qat

#endif
