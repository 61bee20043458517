#include "dev/emulator/access_log.h"

#include <algorithm>
#include <bit>
#include <string>

namespace train_qat::emulator {

namespace {

constexpr int64_t sector_bytes = 32, banks = 32, word_bytes = 4;
// A warp that never meets keeps all its requests until it returns. Beyond so many of one place, accesses
// count in bytes only: the loops behind them are long and regular.
constexpr uint32_t most_requests = 1 << 13;

bool same(const Location& a, const Location& b) {
    return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

// Bytes [first, end).
struct Range {
    uint64_t first, end;
};

struct Ranges {
    std::array<Range, warp_size> range;
    int count = 0;
    void add(uint64_t address, uint64_t bytes) { range[count++] = {address, address + bytes}; }
    void sort() {
        std::sort(range.begin(), range.begin() + count,
                  [](const Range& a, const Range& b) { return a.first < b.first; });
    }
    // Both after sort().
    int64_t distinct_bytes() const {
        uint64_t end = 0;
        int64_t sum = 0;
        for (int i = 0; i < count; ++i) {
            const uint64_t first = std::max(range[i].first, end);
            if (range[i].end > first) sum += static_cast<int64_t>(range[i].end - first);
            end = std::max(end, range[i].end);
        }
        return sum;
    }
    int64_t sectors() const {
        uint64_t next = 0;
        int64_t sum = 0;
        for (int i = 0; i < count; ++i) {
            const uint64_t first = std::max(range[i].first / sector_bytes, next);
            const uint64_t end = (range[i].end - 1) / sector_bytes + 1;
            if (end > first) sum += static_cast<int64_t>(end - first);
            next = std::max(next, end);
        }
        return sum;
    }
    // The most distinct words that one bank has to give.
    int64_t wavefronts() const {
        std::array<std::vector<uint64_t>, banks> words;
        int64_t most = 0;
        for (int i = 0; i < count; ++i)
            for (uint64_t word = range[i].first / word_bytes; word * word_bytes < range[i].end; ++word) {
                std::vector<uint64_t>& bank = words[word % banks];
                if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
                most = std::max(most, static_cast<int64_t>(bank.size()));
            }
        return most;
    }
};

// Lanes [first, end) that take part.
Ranges ranges_of(uint32_t lanes, const std::array<uint64_t, warp_size>& address,
                 const std::array<uint8_t, warp_size>& bytes, int first, int end) {
    Ranges result;
    for (int lane = first; lane < end; ++lane)
        if (lanes >> lane & 1) result.add(address[lane], bytes[lane]);
    return result;
}

}  // namespace

Counters& Counters::operator+=(const Counters& other) {
    tensor_core_flops += other.tensor_core_flops;
    bytes_loaded += other.bytes_loaded;
    bytes_stored += other.bytes_stored;
    load_requests += other.load_requests;
    load_sectors += other.load_sectors;
    ideal_load_sectors += other.ideal_load_sectors;
    store_requests += other.store_requests;
    store_sectors += other.store_sectors;
    ideal_store_sectors += other.ideal_store_sectors;
    shared_requests += other.shared_requests;
    shared_wavefronts += other.shared_wavefronts;
    ideal_shared_wavefronts += other.ideal_shared_wavefronts;
    ldmatrix_requests += other.ldmatrix_requests;
    ldmatrix_wavefronts += other.ldmatrix_wavefronts;
    ideal_ldmatrix_wavefronts += other.ideal_ldmatrix_wavefronts;
    return *this;
}

void AccessLog::start_block(int64_t warps) {
    sites_.resize(std::max(sites_.size(), static_cast<size_t>(warps)));
    for (std::vector<Site>& sites : sites_) sites.clear();
}

Counters& AccessLog::at(const Location& location) {
    for (size_t step = 0; step < lines_.size(); ++step) {
        Line& line = lines_[last_line_];
        if (same(line.location, location)) return line.counters;
        last_line_ = (last_line_ + 1) % lines_.size();
    }
    last_line_ = lines_.size();
    lines_.push_back({location, {}});
    return lines_.back().counters;
}

AccessLog::Site& AccessLog::site(uint32_t warp, Traffic traffic, const Location& location) {
    std::vector<Site>& sites = sites_[warp];
    for (Site& candidate : sites)
        if (candidate.traffic == traffic && same(candidate.location, location)) return candidate;
    sites.push_back({traffic, location, {}, {}});
    return sites.back();
}

void AccessLog::add(Traffic traffic, uint32_t warp, uint32_t lane, uint64_t address, int64_t bytes,
                    const Location& location) {
    if (traffic == Traffic::load) at(location).bytes_loaded += bytes;
    if (traffic == Traffic::store) at(location).bytes_stored += bytes;
    constexpr int64_t widest = 16;
    for (; bytes > 0; bytes -= widest, address += widest) {
        Site& here = site(warp, traffic, location);
        const uint32_t visit = here.visits[lane]++;
        if (visit >= most_requests) continue;
        if (visit >= here.requests.size()) here.requests.resize(visit + 1);
        Request& request = here.requests[visit];
        request.lanes |= 1u << lane;
        request.address[lane] = address;
        request.bytes[lane] = static_cast<uint8_t>(std::min(bytes, widest));
    }
}

void AccessLog::close(uint32_t warp) {
    for (Site& site : sites_[warp]) {
        if (site.requests.empty()) continue;
        Counters& counters = at(site.location);
        for (const Request& request : site.requests) count(counters, site.traffic, request);
        site.requests.clear();
        site.visits.fill(0);
    }
}

void AccessLog::count(Counters& counters, Traffic traffic, const Request& request) {
    if (traffic == Traffic::load || traffic == Traffic::store) {
        Ranges ranges = ranges_of(request.lanes, request.address, request.bytes, 0, warp_size);
        ranges.sort();
        const int64_t sectors = ranges.sectors();
        const int64_t ideal = (ranges.distinct_bytes() + sector_bytes - 1) / sector_bytes;
        const bool load = traffic == Traffic::load;
        (load ? counters.load_requests : counters.store_requests) += 1;
        (load ? counters.load_sectors : counters.store_sectors) += sectors;
        (load ? counters.ideal_load_sectors : counters.ideal_store_sectors) += ideal;
        return;
    }
    // Lanes that are served together.
    const bool ldmatrix = traffic == Traffic::ldmatrix;
    const int bytes = request.bytes[std::countr_zero(request.lanes)];
    const int together = bytes > 8 ? 8 : bytes > 4 ? 16 : 32;
    int64_t wavefronts = 0, ideal = 0;
    for (int first = 0; first < warp_size; first += together) {
        const Ranges ranges =
            ranges_of(request.lanes, request.address, request.bytes, first, first + together);
        if (ranges.count == 0) continue;
        wavefronts += ranges.wavefronts();
        ideal += 1;
    }
    (ldmatrix ? counters.ldmatrix_requests : counters.shared_requests) += 1;
    (ldmatrix ? counters.ldmatrix_wavefronts : counters.shared_wavefronts) += wavefronts;
    (ldmatrix ? counters.ideal_ldmatrix_wavefronts : counters.ideal_shared_wavefronts) += ideal;
}

void AccessLog::report(LaunchReport& report) const {
    for (const Line& line : lines_) {
        report += line.counters;
        report.lines[std::string(line.location.file_name()) + ":" + std::to_string(line.location.line())] +=
            line.counters;
    }
}

}  // namespace train_qat::emulator
