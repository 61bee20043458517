// Tests of ranks as processes: collectives and training over MPI or NCCL, on every device that
// TRAIN_QAT_TEST_DEVICES names (cpu, emulated, gpu; default cpu,emulated). All ranks run the same tests:
//
//     mpirun -np 3 build/train_qat_rank_test
//
// The last line of rank 0 is "N passed, M failed".
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <sstream>

#include "kernels/cuda/platform/cuda_options.h"
#include "kernels/ranks/launch.h"
#include "kernels/ranks/mpi_communicator.h"
#include "kernels/ranks/nccl_communicator.h"
#include "test/support/collectives.h"
#include "test/support/parallel_training.h"

namespace train_qat::test {

namespace {

constexpr double timeout_seconds = 60;

// Counts tests; a test passes when it passes on all ranks.
class Tests {
  public:
    explicit Tests(Communicator& host) : host_(host) {}

    // `test` returns "" or what is wrong on this rank.
    void run(const std::string& name, const std::function<std::string()>& test) {
        const std::vector<std::string> reports = gather_texts(host_, test());
        bool passed = true;
        for (size_t rank = 0; rank < reports.size(); ++rank) {
            if (reports[rank].empty()) continue;
            passed = false;
            say("  rank " + std::to_string(rank) + ": " + reports[rank]);
        }
        ++(passed ? passed_ : failed_);
        say((passed ? "passed  " : "FAILED  ") + name);
    }

    int finish() const {
        say(std::to_string(passed_) + " passed, " + std::to_string(failed_) + " failed");
        return failed_ == 0 ? 0 : 1;
    }

    void say(const std::string& line) const {
        if (host_.rank() == 0) std::cout << line << std::endl;
    }

  private:
    Communicator& host_;
    int passed_ = 0, failed_ = 0;
};

struct Device {
    std::string name;
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Communicator> communicator;
};

Device make_device(const std::string& name, const MpiSession& mpi, Communicator& host) {
    Device device{name, nullptr, nullptr};
    CudaOptions options;
    if (name == "cpu") device.backend = make_cpu_backend(1);
    if (name == "emulated") device.backend = make_emulated_cuda_backend(options);
    if (name != "gpu") {
        device.communicator = mpi.communicator(timeout_seconds);
        return device;
    }
    options.device = find_launch().local_rank;
    options.qat_gemm = QatGemm::fused;  // the same choice on all ranks and in all runs
    device.backend = make_cuda_backend(options);
    NcclId id;
    if (host.rank() == 0) id = new_nccl_id();
    host.broadcast(id.bytes.data(), static_cast<int64_t>(id.bytes.size()), 0);
    host.wait();
    device.communicator =
        make_nccl_communicator(*device.backend, host.rank(), host.size(), id, timeout_seconds);
    return device;
}

std::string joined(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) text += (text.empty() ? "" : "; ") + line;
    return text;
}

// Rank 0 alone, with all micro-batches of all ranks, against all ranks.
void compare_with_one(Tests& tests, Device& device, ParallelCase c, const ModelConfig& config) {
    const int ranks = device.communicator->size();
    RankTrained alone;
    {
        ParallelCase all = c;
        all.micro_batches *= ranks;
        const std::unique_ptr<Communicator> single = make_single_communicator();
        alone = train_rank(all, config, *device.backend, *single);
    }
    tests.run(device.name + ": like one process, " + text_of(c, ranks), [&] {
        return departure(train_rank(c, config, *device.backend, *device.communicator, &alone), alone,
                         tokens_of_step(c, config) * ranks);
    });
    const RankTrained together = train_rank(c, config, *device.backend, *device.communicator);
    tests.run(device.name + ": the same bits again, " + text_of(c, ranks), [&] {
        return difference(together, train_rank(c, config, *device.backend, *device.communicator));
    });
    c.zero = 0;
    tests.run(device.name + ": zero 0 = zero 1, " + text_of(c, ranks), [&] {
        return difference(together, train_rank(c, config, *device.backend, *device.communicator));
    });
}

void test_device(Tests& tests, Device& device) {
    tests.say(device.name + ": " + device.backend->describe() + "; " + device.communicator->describe());
    tests.run(device.name + ": collectives",
              [&] { return joined(check_collectives(*device.communicator, *device.backend)); });
    const bool emulated = device.name == "emulated";
    ModelConfig config = tiny_config();
    if (emulated) config.layers = 1;
    for (const ParallelCase& c :
         {ParallelCase{4, 0, DType::float32, 1, 2}, ParallelCase{1, 8, DType::float32, 1, 1}})
        compare_with_one(tests, device, emulated ? ParallelCase{c.bits, c.group, c.dtype, 1, 1, 6, 3} : c,
                         config);
    // Weights as packed codes; rows and groups as the fused kernels take them.
    config.width = 64, config.heads = 2, config.kv_heads = 1, config.head_dim = 32, config.ffn = 96;
    for (const ParallelCase& c :
         {ParallelCase{2, 0, DType::bfloat16, 1, 1, 6, 3}, ParallelCase{4, 32, DType::bfloat16, 1, 1, 6, 3}})
        compare_with_one(tests, device, c, config);
}

int run() {
    const MpiSession mpi;
    const std::unique_ptr<Communicator> host = mpi.communicator(timeout_seconds);
    try {
        Tests tests(*host);
        const char* const wanted = std::getenv("TRAIN_QAT_TEST_DEVICES");
        std::stringstream names(wanted != nullptr ? wanted : "cpu,emulated");
        for (std::string name; std::getline(names, name, ',');) {
            Device device = make_device(name, mpi, *host);
            if (device.backend == nullptr)
                throw std::runtime_error("TRAIN_QAT_TEST_DEVICES: unknown " + name);
            test_device(tests, device);
        }
        return tests.finish();
    } catch (const std::exception& error) {
        std::cerr << "rank " << host->rank() << ": " << error.what() << std::endl;
        mpi.abort(1);
    }
}

}  // namespace

}  // namespace train_qat::test

int main() {
    try {
        return train_qat::test::run();
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
}
