#include <algorithm>
#include <cstdio>

#include "dev/emulator/emulator.h"

namespace train_qat::emulator {

namespace {

Recorder* innermost = nullptr;

struct Row {
    std::string name;
    int64_t launches = 0;
    Counters counters;
};

void add(std::vector<Row>& rows, const std::string& name, const Counters& counters) {
    auto row = std::find_if(rows.begin(), rows.end(), [&](const Row& r) { return r.name == name; });
    if (row == rows.end()) row = rows.insert(rows.end(), {name, 0, {}});
    ++row->launches;
    row->counters += counters;
}

// "1.00": as good as it can be; "-": there was nothing.
std::string ratio(int64_t actual, int64_t ideal) {
    if (ideal == 0) return "-";
    char text[32];
    std::snprintf(text, sizeof text, "%.2f", static_cast<double>(actual) / static_cast<double>(ideal));
    return text;
}

std::string count(int64_t value) {
    return value == 0 ? "-" : std::to_string(value);
}

std::string table(const std::string& subject, const std::vector<Row>& rows) {
    std::string text =
        "| " + subject +
        " | launches | bytes loaded | bytes stored | load sectors / ideal | store sectors / ideal "
        "| shared wavefronts / ideal | ldmatrix wavefronts / ideal | tensor core FLOP |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    for (const Row& row : rows) {
        const Counters& c = row.counters;
        const std::string cells[] = {row.name,
                                     std::to_string(row.launches),
                                     count(c.bytes_loaded),
                                     count(c.bytes_stored),
                                     ratio(c.load_sectors, c.ideal_load_sectors),
                                     ratio(c.store_sectors, c.ideal_store_sectors),
                                     ratio(c.shared_wavefronts, c.ideal_shared_wavefronts),
                                     ratio(c.ldmatrix_wavefronts, c.ideal_ldmatrix_wavefronts),
                                     count(c.tensor_core_flops)};
        text += "|";
        for (const std::string& cell : cells) text += " " + cell + " |";
        text += "\n";
    }
    return text;
}

// Sectors and wavefronts in excess of the ideal.
int64_t waste(const Counters& c) {
    return c.load_sectors - c.ideal_load_sectors + c.store_sectors - c.ideal_store_sectors +
           c.bank_conflicts();
}

}  // namespace

Recorder::Recorder() : outer_(innermost) {
    innermost = this;
}

Recorder::~Recorder() {
    innermost = outer_;
}

Recorder* Recorder::active() {
    return innermost;
}

std::string markdown(const std::vector<LaunchReport>& launches) {
    std::vector<Row> kernels, lines;
    for (const LaunchReport& launch : launches) {
        add(kernels, launch.kernel, launch);
        for (const auto& [line, counters] : launch.lines) add(lines, line, counters);
    }
    std::string text = table("kernel", kernels);
    lines.erase(
        std::remove_if(lines.begin(), lines.end(), [](const Row& r) { return waste(r.counters) <= 0; }),
        lines.end());
    std::stable_sort(lines.begin(), lines.end(),
                     [](const Row& a, const Row& b) { return waste(a.counters) > waste(b.counters); });
    if (!lines.empty())
        text += "\nLines that waste sectors or wavefronts, the worst first:\n\n" + table("line", lines);
    return text;
}

}  // namespace train_qat::emulator
