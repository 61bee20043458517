#include "model/job/job.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "kernels/cuda/platform/cuda_options.h"
#include "kernels/ranks/nccl_communicator.h"
#include "kernels/ranks/rendezvous.h"
#include "model/job/layout.h"

namespace train_qat {

namespace {

QatGemm qat_gemm(const std::string& name) {
    if (name == "fused") return QatGemm::fused;
    if (name == "hopper") return QatGemm::hopper;
    return name == "cublaslt" ? QatGemm::cublaslt : QatGemm::automatic;
}

DenseGemm dense_gemm(const std::string& name) {
    if (name == "hopper") return DenseGemm::hopper;
    return name == "cublaslt" ? DenseGemm::cublaslt : DenseGemm::automatic;
}

AttentionKernels attention_kernels(const std::string& name) {
    if (name == "hopper") return AttentionKernels::hopper;
    return name == "mma" ? AttentionKernels::mma : AttentionKernels::automatic;
}

std::string text(int number) {
    return std::to_string(number);
}

}  // namespace

Job::Job(const Options& options) : options_(options), launch_(find_launch()) {
    if (launch_.by == Launch::By::mpi) {
        if (!mpi_unavailable().empty())
            throw std::runtime_error("started by " + launch_.source + ", but " + mpi_unavailable());
        mpi_ = std::make_unique<MpiSession>();
        everyone_ = mpi_->communicator(options.rank_timeout);
        if (launch_.size > 1 && everyone_->size() == 1)
            throw std::runtime_error(
                "started by " + launch_.source + " as one of " + text(launch_.size) +
                " ranks, but the MPI of this program sees one: start it with the mpirun of "
                "the MPI that it was built with, or unset the launcher's variables");
        launch_.rank = everyone_->rank();
        launch_.size = everyone_->size();
    } else {
        everyone_ = make_single_communicator();
        if (launch_.size > 1 && options.rendezvous.empty())
            throw std::runtime_error("started by " + launch_.source + " as rank " + text(launch_.rank) +
                                     " of " + text(launch_.size) +
                                     ": give -rendezvous, a path on a file system that all ranks share, or "
                                     "start with mpirun");
    }
}

Team Job::team(int size) const {
    if (size < 1 || launch_.size % size != 0)
        throw std::runtime_error("-sweep_ranks " + text(size) + ": must divide the number of ranks, " +
                                 text(launch_.size));
    return {launch_.rank / size, launch_.rank % size, size};
}

// All that the launcher has bound this rank to; where it has bound none, the machine's are shared out.
int Job::cpu_threads(const Options& options) const {
    if (options.threads > 0 || launch_.local_size == 1) return options.threads;
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof usable, &usable) != 0) return options.threads;
    const int cores = CPU_COUNT(&usable);
    const auto machine = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
    return cores < machine ? cores : std::max(1, cores / launch_.local_size);
}

std::unique_ptr<Backend> Job::make_backend(const Options& options, int ranks, std::ostream& log) const {
    // With many ranks on a machine, each has the device of its number there; some launchers show each rank
    // its own alone.
    const int device = cuda_unavailable(1).empty() ? launch_.local_rank : 0;
    // Whether there is CUDA at all decides for all ranks alike; a rank that then lacks a device is an error.
    const std::string missing = options.device == "cpu" ? "" : cuda_unavailable(0);
    if (options.device == "cuda" || (options.device == "auto" && missing.empty())) {
        CudaOptions cuda;
        cuda.device = device;
        cuda.qat_gemm = qat_gemm(options.qat_gemm);
        cuda.gemm = dense_gemm(options.gemm);
        cuda.attention = attention_kernels(options.attention);
        cuda.matmul_rows = run_layout(options, ranks).batch * options.sequence_length;
        const std::string own = launch_.rank == 0 ? "" : "_rank" + text(launch_.rank);
        // Modes that only print write nothing, also not beside a run that is at work in -o.
        if (!options.evaluate_only && !options.sample)
            cuda.tuning_file =
                (std::filesystem::path(options.output_directory) / ("cuda_tuning" + own + ".txt")).string();
        cuda.report = [&log](const std::string& line) { log << line << std::endl; };
        std::unique_ptr<Backend> backend = make_cuda_backend(cuda);
        log << "device: " << backend->describe() << "\n";
        return backend;
    }
    if (options.master == "off")
        throw std::runtime_error("-master off: only the CUDA backend rounds stochastically, and " + missing);
    if (options.qat_gemm == "hopper")
        throw std::runtime_error("-qat_gemm hopper: needs a card of compute capability 9.0, and " + missing);
    if (options.gemm != "auto")
        throw std::runtime_error("-gemm " + options.gemm + ": only the CUDA backend has it, and " + missing);
    if (options.attention == "hopper")
        throw std::runtime_error("-attention hopper: only the CUDA backend has it, and " + missing);
    std::unique_ptr<Backend> backend = make_cpu_backend(cpu_threads(options));
    log << "device: " << backend->describe() << (missing.empty() ? "" : " (-device auto: " + missing + ")")
        << "\n";
    return backend;
}

std::unique_ptr<Communicator> Job::connect(const Team& team, Backend& backend) {
    if (team.size == 1) return make_single_communicator();
    std::unique_ptr<Communicator> host;
    if (mpi_ != nullptr) host = mpi_->group_communicator(team.number, options_.rank_timeout);
    const bool on_cuda = !backend.host_addressable();
    if (host != nullptr) {
        const std::vector<double> kinds = gather_numbers(*host, on_cuda ? 1 : 0);
        for (size_t rank = 0; rank < kinds.size(); ++rank)
            if (kinds[rank] != kinds[0])
                throw std::runtime_error(
                    "rank " + std::to_string(rank) +
                    " and rank 0 have devices of different kinds; give -device cpu or cuda");
        if (!on_cuda) return host;
    }
    if (!on_cuda)
        throw std::runtime_error("the CPU's ranks talk over MPI, and these were started by " +
                                 launch_.source + "; start them with mpirun");
    return connect_devices(team, backend, host.get());
}

// Rank 0's NCCL id comes to the others over MPI or through a file.
std::unique_ptr<Communicator> Job::connect_devices(const Team& team, Backend& backend, Communicator* host) {
    NcclId id;
    if (host != nullptr) {
        train_qat::run_together(*host, [] {
            if (!nccl_unavailable().empty())
                throw std::runtime_error("ranks on CUDA devices need NCCL: " + nccl_unavailable());
        });
        if (host->rank() == 0) id = new_nccl_id();
        host->broadcast(id.bytes.data(), static_cast<int64_t>(id.bytes.size()), 0);
        host->wait();
    } else {
        const auto make = [] {
            const NcclId made = new_nccl_id();
            return std::string(made.bytes.data(), made.bytes.size());
        };
        const std::string path = options_.rendezvous + ".team" + text(team.number) + "." + text(meetings_++);
        const std::string bytes = share_by_file(path, team.rank, team.size, make, options_.rank_timeout);
        std::memcpy(id.bytes.data(), bytes.data(), std::min(bytes.size(), id.bytes.size()));
    }
    return make_nccl_communicator(backend, team.rank, team.size, id, options_.rank_timeout);
}

std::string Job::share(const std::function<std::string()>& make) {
    return share_by_file(options_.rendezvous + ".all." + text(meetings_++), launch_.rank, launch_.size, make,
                         options_.rank_timeout);
}

void Job::run_on_rank_0(const std::function<void()>& function) {
    if (connected()) return train_qat::run_on_rank_0(*everyone_, function);
    const std::string outcome = share([&function]() -> std::string {
        try {
            function();
            return "done";
        } catch (const std::runtime_error& error) {
            return std::string("!") + error.what();
        }
    });
    if (outcome[0] == '!') throw JointError(outcome.substr(1));
}

std::string Job::text_of_rank_0(const std::string& text) {
    if (connected()) return train_qat::text_of_rank_0(*everyone_, text);
    return share([&text] { return text; });
}

void Job::abort(int exit_code) const {
    if (mpi_ != nullptr) mpi_->abort(exit_code);
    std::_Exit(exit_code);
}

}  // namespace train_qat
