#include "kernels/ranks/agreement.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <new>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace train_qat {

namespace {

constexpr char failed = '!';  // in front, so that an error without a message is one too

// "" or, behind the mark, the message of what `function` threw.
std::string report_of(const std::function<void()>& function) {
    try {
        function();
    } catch (const RankError&) {
        throw;
    } catch (const std::runtime_error& error) {
        return failed + std::string(error.what());
    } catch (const std::bad_alloc&) {
        return failed + std::string("not enough host memory");
    }
    return "";
}

}  // namespace

void fail_together(Communicator& communicator, const std::function<void()>& function) {
    if (communicator.size() == 1) return function();
    const std::vector<std::string> reports = gather_texts(communicator, report_of(function));
    const bool alike = std::count(reports.begin(), reports.end(), reports[0]) == std::ssize(reports);
    for (size_t rank = 0; rank < reports.size(); ++rank)
        if (!reports[rank].empty())
            throw JointError((alike ? "" : "rank " + std::to_string(rank) + ": ") + reports[rank].substr(1));
}

void run_on_rank_0(Communicator& communicator, const std::function<void()>& function) {
    if (communicator.size() == 1) return function();
    const std::string report =
        text_of_rank_0(communicator, communicator.rank() == 0 ? report_of(function) : "");
    if (!report.empty()) throw JointError(report.substr(1));
}

std::string text_of_rank_0(Communicator& communicator, const std::string& text) {
    return gather_texts(communicator, communicator.rank() == 0 ? text : "")[0];
}

uint64_t sum_over_ranks(Communicator& communicator, uint64_t mine) {
    std::vector<uint64_t> all(static_cast<size_t>(communicator.size()));
    all[static_cast<size_t>(communicator.rank())] = mine;
    communicator.gather_on_host(all.data(), sizeof mine);
    return std::accumulate(all.begin(), all.end(), uint64_t{0});
}

}  // namespace train_qat
