// How this process was started, and which rank it is: read from the environment, before MPI or NCCL is asked.
#pragma once

#include <functional>
#include <string>

namespace train_qat {

struct Launch {
    int rank = 0, size = 1;              // of the job
    int local_rank = 0, local_size = 1;  // of those on this machine
    enum class By {
        alone,     // started by hand: one rank
        mpi,       // by mpirun or by srun --mpi=...: MPI_Init finds the others; size may be 1
        variables  // rank and size are given, nothing that connects the ranks
    } by = By::alone;
    std::string source;  // for messages: "Open MPI (OMPI_COMM_WORLD_RANK)"; "" when alone
};

// The variables, of which the first complete set counts:
//   mpi        OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE                     Open MPI
//              PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS                      MPICH, Intel MPI
//              PMIX_RANK inside a Slurm job step of several tasks                        srun --mpi=pmix
//   variables  RANK, WORLD_SIZE, LOCAL_RANK, and LOCAL_WORLD_SIZE (default: all ranks)   torchrun and others
//              SLURM_PROCID, SLURM_LOCALID and SLURM_STEP_NUM_TASKS in a job step        srun without MPI
// Where a launcher does not say which of its ranks are on this machine, Slurm's or the RANK set's local
// values do. Slurm's variables of the job (SLURM_NTASKS, SLURM_PROCID=0) also stand in batch scripts and in
// the shells of salloc and srun --pty: only a normal job step of several tasks counts.
//
// Throws std::runtime_error, in one line naming the variable: values that are no numbers, missing ones, or
// ranks that do not fit their sizes.
Launch find_launch(const std::function<const char*(const char*)>& environment);
Launch find_launch();  // of this process

}  // namespace train_qat
