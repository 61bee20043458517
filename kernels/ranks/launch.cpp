#include "kernels/ranks/launch.h"

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <vector>

namespace train_qat {

namespace {

using Environment = std::function<const char*(const char*)>;

std::optional<std::string> text_of(const Environment& environment, const std::string& name) {
    const char* value = environment(name.c_str());
    if (value == nullptr || *value == '\0') return std::nullopt;
    return value;
}

[[noreturn]] void fail(const std::string& message) {
    throw std::runtime_error("the launcher's environment: " + message +
                             "; unset these variables to run one rank, or correct them");
}

std::optional<int> number_of(const Environment& environment, const std::string& name) {
    const std::optional<std::string> text = text_of(environment, name);
    if (!text) return std::nullopt;
    int value = 0;
    const char* const end = text->data() + text->size();
    const auto [rest, error] = std::from_chars(text->data(), end, value);
    if (error != std::errc() || rest != end || value < 0)
        fail(name + " must be a number from 0 on, is '" + *text + "'");
    return value;
}

// The first of `names` that is set.
std::optional<int> first_number(const Environment& environment, const std::vector<std::string>& names) {
    for (const std::string& name : names)
        if (const std::optional<int> value = number_of(environment, name)) return value;
    return std::nullopt;
}

int require(const Environment& environment, const std::string& name, const std::string& because) {
    const std::optional<int> value = number_of(environment, name);
    if (!value) fail(name + " is not set, though " + because + " is");
    return *value;
}

// SLURM_STEP_TASKS_PER_NODE is "4(x2),3": tasks of the nodes 0, 1 and 2.
std::optional<int> slurm_local_size(const Environment& environment) {
    const std::optional<int> node = number_of(environment, "SLURM_NODEID");
    std::optional<std::string> text = text_of(environment, "SLURM_STEP_TASKS_PER_NODE");
    if (!node || !text) return std::nullopt;
    int64_t nodes = 0;
    for (const char* position = text->c_str(); *position != '\0';) {
        int tasks = 0, times = 1, used = 0;
        if (std::sscanf(position, "%d%n", &tasks, &used) != 1) return std::nullopt;
        position += used;
        used = 0;
        if (std::sscanf(position, "(x%d)%n", &times, &used) == 1 && used > 0) position += used;
        nodes += times;
        if (*node < nodes) return tasks;
        if (*position == ',') ++position;
    }
    return std::nullopt;
}

// Whether srun started this process as a task of a step. The batch script, the shell of salloc and foreign
// processes are steps too, with numbers beyond all normal ones (SLURM_BATCH_SCRIPT, SLURM_INTERACTIVE_STEP,
// ...).
bool in_slurm_step(const Environment& environment) {
    constexpr uint64_t first_special_step = 0xfffffff0;
    std::optional<std::string> text = text_of(environment, "SLURM_STEP_ID");
    if (!text) text = text_of(environment, "SLURM_STEPID");
    return text && text_of(environment, "SLURM_PROCID") &&
           std::strtoull(text->c_str(), nullptr, 10) < first_special_step;
}

std::optional<int> slurm_step_tasks(const Environment& environment) {
    if (!in_slurm_step(environment)) return std::nullopt;
    return first_number(environment, {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
}

// Of a launcher that may not say which ranks are on this machine.
void find_local(const Environment& environment, const std::string& rank_name, const std::string& size_name,
                Launch& launch) {
    std::optional<int> rank = number_of(environment, rank_name), size = number_of(environment, size_name);
    if (in_slurm_step(environment)) {
        if (!rank) rank = number_of(environment, "SLURM_LOCALID");
        if (!size) size = slurm_local_size(environment);
    }
    if (!rank) rank = number_of(environment, "LOCAL_RANK");
    if (!size) size = number_of(environment, "LOCAL_WORLD_SIZE");
    if (!rank && launch.size == 1) rank = 0;
    if (!rank)
        fail("neither " + rank_name + " nor LOCAL_RANK says which of this machine's ranks this is (" +
             launch.source + ")");
    launch.local_rank = *rank;
    launch.local_size = size.value_or(launch.size);
}

Launch checked(const Launch& launch) {
    const auto text = [](int rank, int size) { return std::to_string(rank) + " of " + std::to_string(size); };
    if (launch.rank >= launch.size)
        fail("rank " + text(launch.rank, launch.size) + " does not exist (" + launch.source + ")");
    if (launch.local_rank >= launch.local_size)
        fail("local rank " + text(launch.local_rank, launch.local_size) + " does not exist (" +
             launch.source + ")");
    if (launch.local_size > launch.size)
        fail(std::to_string(launch.local_size) + " ranks on this machine, but only " +
             std::to_string(launch.size) + " in all (" + launch.source + ")");
    return launch;
}

// A launcher's rank and size under their names, if any of the two is set.
std::optional<Launch> find_pair(const Environment& environment, Launch::By by, const std::string& title,
                                const std::string& rank_name, const std::string& size_name) {
    if (!text_of(environment, rank_name) && !text_of(environment, size_name)) return std::nullopt;
    Launch launch;
    launch.by = by;
    launch.source = title + " (" + rank_name + ")";
    launch.rank = require(environment, rank_name, size_name);
    launch.size = require(environment, size_name, rank_name);
    return launch;
}

std::optional<Launch> find_slurm(const Environment& environment, Launch::By by, const std::string& source) {
    const std::optional<int> tasks = slurm_step_tasks(environment);
    if (!tasks || *tasks <= 1) return std::nullopt;
    Launch launch;
    launch.by = by;
    launch.source = source;
    launch.rank = require(environment, "SLURM_PROCID", "SLURM_STEP_ID");
    launch.size = *tasks;
    find_local(environment, "SLURM_LOCALID", "", launch);
    return launch;
}

}  // namespace

Launch find_launch(const Environment& environment) {
    if (auto launch = find_pair(environment, Launch::By::mpi, "Open MPI", "OMPI_COMM_WORLD_RANK",
                                "OMPI_COMM_WORLD_SIZE")) {
        find_local(environment, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", *launch);
        return checked(*launch);
    }
    if (auto launch = find_pair(environment, Launch::By::mpi, "MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE")) {
        find_local(environment, "MPI_LOCALRANKID", "MPI_LOCALNRANKS", *launch);
        return checked(*launch);
    }
    if (text_of(environment, "PMIX_RANK"))
        if (auto launch = find_slurm(environment, Launch::By::mpi, "Slurm with PMIx (PMIX_RANK)")) {
            if (require(environment, "PMIX_RANK", "SLURM_PROCID") != launch->rank)
                fail("PMIX_RANK and SLURM_PROCID differ");
            return checked(*launch);
        }
    // Before Slurm's own: a launcher that srun has started once on every machine sets these for its children.
    const bool has_rank = text_of(environment, "RANK").has_value();
    const bool has_local_rank = text_of(environment, "LOCAL_RANK").has_value();
    const std::optional<std::string> world_size = text_of(environment, "WORLD_SIZE");
    if (has_rank && has_local_rank && world_size) {
        auto launch =
            find_pair(environment, Launch::By::variables, "environment variables", "RANK", "WORLD_SIZE");
        find_local(environment, "LOCAL_RANK", "LOCAL_WORLD_SIZE", *launch);
        return checked(*launch);
    }
    if (auto launch = find_slurm(environment, Launch::By::variables, "Slurm (SLURM_PROCID)"))
        return checked(*launch);
    if (world_size && number_of(environment, "WORLD_SIZE").value() > 1)
        fail(std::string("WORLD_SIZE is ") + *world_size + ", but " + (has_rank ? "LOCAL_RANK" : "RANK") +
             " is not set");
    return {};
}

Launch find_launch() {
    return find_launch([](const char* name) { return static_cast<const char*>(std::getenv(name)); });
}

}  // namespace train_qat
