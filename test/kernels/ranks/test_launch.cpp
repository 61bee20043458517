// Which rank a process is, from environments as launchers make them.
#include <map>
#include <string>

#include "kernels/ranks/launch.h"
#include "test/support/catch.h"

using train_qat::find_launch;
using train_qat::Launch;

namespace {

using Variables = std::map<std::string, std::string>;

Launch launch_of(const Variables& variables) {
    return find_launch([&](const char* name) {
        const auto found = variables.find(name);
        return found == variables.end() ? nullptr : found->second.c_str();
    });
}

std::string error_of(const Variables& variables) {
    try {
        launch_of(variables);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

void require_launch(const Launch& launch, Launch::By by, int rank, int size, int local_rank, int local_size) {
    CHECK(launch.by == by);
    CHECK(launch.rank == rank);
    CHECK(launch.size == size);
    CHECK(launch.local_rank == local_rank);
    CHECK(launch.local_size == local_size);
    CHECK(launch.source.empty() == (by == Launch::By::alone));
}

Variables with(Variables variables, const Variables& more) {
    for (const auto& [name, value] : more) variables[name] = value;
    return variables;
}

const Variables open_mpi = {{"OMPI_COMM_WORLD_RANK", "5"},
                            {"OMPI_COMM_WORLD_SIZE", "6"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "3"}};
// In a batch script, and in the shell of salloc where that runs on the first node.
const Variables slurm_job = {{"SLURM_JOB_ID", "17"}, {"SLURM_NTASKS", "7"}, {"SLURM_PROCID", "0"},
                             {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "0"}, {"SLURM_TASKS_PER_NODE", "4,3"},
                             {"SLURM_NPROCS", "7"}};
const Variables slurm_step = {{"SLURM_JOB_ID", "17"}, {"SLURM_NTASKS", "7"},
                              {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "7"},
                              {"SLURM_PROCID", "6"},  {"SLURM_LOCALID", "2"},
                              {"SLURM_NODEID", "1"},  {"SLURM_STEP_TASKS_PER_NODE", "4,3"}};
const Variables torchrun = {
    {"RANK", "9"}, {"WORLD_SIZE", "16"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "8"}};

}  // namespace

TEST_CASE("a process without a launcher is alone", "[launch]") {
    require_launch(launch_of({}), Launch::By::alone, 0, 1, 0, 1);
    require_launch(launch_of({{"PATH", "/bin"}, {"RANK", ""}, {"LOCAL_RANK", "3"}}), Launch::By::alone, 0, 1,
                   0, 1);
    require_launch(launch_of({{"WORLD_SIZE", "1"}}), Launch::By::alone, 0, 1, 0, 1);
}

TEST_CASE("ranks of mpirun", "[launch]") {
    require_launch(launch_of(open_mpi), Launch::By::mpi, 5, 6, 2, 3);
    require_launch(launch_of(with(open_mpi, torchrun)), Launch::By::mpi, 5, 6, 2, 3);
    // mpirun inside a Slurm job starts its daemons as a step of its own.
    require_launch(launch_of(with(with(open_mpi, slurm_step), {{"PMIX_RANK", "5"}})), Launch::By::mpi, 5, 6,
                   2, 3);
    const Variables mpich = {
        {"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
    require_launch(launch_of(mpich), Launch::By::mpi, 3, 4, 1, 2);
    require_launch(launch_of({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}}), Launch::By::mpi, 0, 1, 0, 1);
}

TEST_CASE("ranks of srun", "[launch]") {
    require_launch(launch_of(slurm_step), Launch::By::variables, 6, 7, 2, 3);
    require_launch(launch_of(with(slurm_step, {{"PMIX_RANK", "6"}})), Launch::By::mpi, 6, 7, 2, 3);
    // srun --mpi=pmi2 names rank and size, Slurm the rest.
    require_launch(launch_of(with(slurm_step, {{"PMI_RANK", "6"}, {"PMI_SIZE", "7"}})), Launch::By::mpi, 6, 7,
                   2, 3);
    const Variables repeated = {{"SLURM_NODEID", "2"}, {"SLURM_STEP_TASKS_PER_NODE", "2(x2),3"}};
    require_launch(launch_of(with(slurm_step, repeated)), Launch::By::variables, 6, 7, 2, 3);
    // srun -n 1, and old releases' name of the step
    require_launch(launch_of(with(slurm_step, {{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}})),
                   Launch::By::alone, 0, 1, 0, 1);
    Variables old = slurm_step;
    old.erase("SLURM_STEP_ID");
    old.erase("SLURM_STEP_NUM_TASKS");
    old["SLURM_STEPID"] = "3";
    require_launch(launch_of(old), Launch::By::variables, 6, 7, 2, 3);
}

TEST_CASE("a batch script or an interactive shell of Slurm is alone", "[launch]") {
    require_launch(launch_of(slurm_job), Launch::By::alone, 0, 1, 0, 1);
    for (const char* special : {"4294967290", "4294967291", "4294967292", "4294967293"})
        require_launch(
            launch_of(with(slurm_job, {{"SLURM_STEP_ID", special}, {"SLURM_STEP_NUM_TASKS", "7"}})),
            Launch::By::alone, 0, 1, 0, 1);
}

TEST_CASE("ranks by RANK, WORLD_SIZE and LOCAL_RANK", "[launch]") {
    require_launch(launch_of(torchrun), Launch::By::variables, 9, 16, 1, 8);
    // started once on every node by srun: the inner launcher counts
    require_launch(launch_of(with(slurm_step, torchrun)), Launch::By::variables, 9, 16, 1, 8);
    Variables without_local_size = torchrun;
    without_local_size.erase("LOCAL_WORLD_SIZE");
    require_launch(launch_of(without_local_size), Launch::By::variables, 9, 16, 1, 16);
    // exported in a batch script for others: srun's own values count
    require_launch(launch_of(with(slurm_step, {{"WORLD_SIZE", "7"}})), Launch::By::variables, 6, 7, 2, 3);
}

TEST_CASE("inconsistent environments are errors in one line", "[launch]") {
    const auto [variables, part] = GENERATE(table<Variables, std::string>({
        {with(torchrun, {{"RANK", "16"}}), "rank 16 of 16"},
        {with(torchrun, {{"RANK", "-1"}}), "RANK"},
        {with(torchrun, {{"RANK", "1x"}}), "'1x'"},
        {with(torchrun, {{"LOCAL_RANK", "8"}}), "local rank 8 of 8"},
        {with(torchrun, {{"LOCAL_WORLD_SIZE", "17"}}), "17 ranks on this machine"},
        {with(torchrun, {{"RANK", ""}}), "RANK is not set"},
        {with(torchrun, {{"LOCAL_RANK", ""}}), "LOCAL_RANK is not set"},
        {with(torchrun, {{"WORLD_SIZE", "99999999999"}}), "WORLD_SIZE"},
        {with(open_mpi, {{"OMPI_COMM_WORLD_SIZE", "5"}}), "rank 5 of 5"},
        {with(open_mpi, {{"OMPI_COMM_WORLD_SIZE", ""}}), "OMPI_COMM_WORLD_SIZE is not set"},
        {{{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}, "MPI_LOCALRANKID"},
        {with(slurm_step, {{"PMIX_RANK", "5"}}), "PMIX_RANK and SLURM_PROCID differ"},
        {with(slurm_step, {{"SLURM_LOCALID", "3"}}), "local rank 3 of 3"},
    }));
    const std::string error = error_of(variables);
    INFO(error);
    CHECK(error.find(part) != std::string::npos);
    CHECK(error.find('\n') == std::string::npos);
}
