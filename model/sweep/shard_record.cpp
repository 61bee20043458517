#include "model/sweep/shard_record.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/patterns.h"
#include "data/shard.h"
#include "model/storage/checksum.h"
#include "model/storage/files.h"
#include "model/storage/shard_checksums.h"

namespace train_qat {

namespace {

using Json = nlohmann::ordered_json;

std::string record_path(const Sweep& sweep) {
    return sweep.options.output_directory + "/queue/shards.json";
}

// {"DATA": {"shards": [...], "checksums": [...]}, ...}: DATA is that of the runs (SweepRunPlan::data), so that of shards
// which give jobs other ids nothing is compared.
Json read_record(const Sweep& sweep) {
    const std::string path = record_path(sweep);
    if (!std::filesystem::exists(path)) return Json::object();
    const Json record = Json::parse(read_text_file(path), nullptr, false);
    if (!record.is_object())
        throw_file_error(path,
                         "is damaged; remove it if the shards of -i are those that the sweep began with");
    return record;
}

struct Shards {
    std::vector<std::string> paths, checksums;
};

Shards read_shards(const Sweep& sweep, const std::string& directory, std::ostream& log) {
    Shards shards{expand_patterns(sweep.options.data.training), {}};
    for (const uint64_t checksum : checksums_of_shards(shards.paths, shard_header_bytes, directory, log))
        shards.checksums.push_back(checksum_text(checksum));
    return shards;
}

void compare(const Json& record, const std::string& data, const Shards& shards) {
    const Json known = record.value(data, Json::object()).value("checksums", Json::array());
    for (size_t i = 0; i < std::min(known.size(), shards.checksums.size()); ++i)
        if (known[i] != shards.checksums[i])
            throw std::runtime_error("-sweep: " + shards.paths[i] +
                                     " of -i holds other tokens than when the sweep began; bring back the "
                                     "shard that it began with, or start anew with another -o");
}

}  // namespace

void record_shards(const Sweep& sweep, std::ostream& log) {
    Json record = read_record(sweep);
    const size_t before = record.size();
    const Shards shards = read_shards(sweep, sweep.options.output_directory, log);
    for (const SweepRunPlan& run : sweep.plan.runs) {
        compare(record, run.data, shards);
        if (!record.contains(run.data))
            record[run.data] = {{"shards", shards.paths}, {"checksums", shards.checksums}};
    }
    if (record.size() != before)
        write_file_atomically(record_path(sweep),
                              record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

void check_shards(const Sweep& sweep, int job) {
    std::ostream nowhere(nullptr);
    const SweepRunPlan& run = sweep.plan.runs[sweep.plan.jobs[job].plan_of];
    compare(read_record(sweep), run.data, read_shards(sweep, directory_of_job(sweep, job), nowhere));
}

}  // namespace train_qat
