// How fast a checkpoint reaches the disk, in turn with what `dd bs=16M conv=fsync` writes there:
//     train_qat_bench_checkpoint DIRECTORY [GIB [ROUNDS]]
// Prints MB/s (10^6 bytes) of each round, and the medians. Needs twice that much memory and disk space, and
// leaves nothing behind.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/device_memory.h"
#include "kernels/normal_numbers.h"
#include "model/storage/checkpoint.h"
#include "model/storage/files.h"

using namespace train_qat;

namespace {

double seconds_of(const auto& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A third of the bytes as weights, two thirds as moments, in matrices like those of a model.
class Weights {
  public:
    Weights(Backend& backend, int64_t bytes) {
        constexpr int64_t columns = 2560, rows = 3 * columns;
        const int64_t matrix_bytes = rows * columns * static_cast<int64_t>(sizeof(float));
        const int64_t matrices = std::max<int64_t>(3, bytes / matrix_bytes);
        for (int64_t i = 0; i < matrices; ++i) {
            memory_.emplace_back(backend, matrix_bytes);
            const Tensor tensor(memory_.back().data(), DType::float32, {rows, columns});
            fill_normal(tensor.as<float>(), 0, tensor.elements(), {.seed = static_cast<uint64_t>(i)});
            NamedTensor named{"matrix_" + std::to_string(i), tensor};
            (i % 3 == 0 ? contents_.model : contents_.optimizer).push_back(named);
            bytes_ += matrix_bytes;
        }
    }
    const CheckpointContents& contents() const { return contents_; }
    int64_t bytes() const { return bytes_; }

  private:
    std::vector<DeviceMemory> memory_;
    CheckpointContents contents_;
    int64_t bytes_ = 0;
};

void write_as_dd(const std::string& path, int64_t bytes) {
    const std::vector<char> block(16 << 20, 'x');
    OutputFile file(path);
    for (int64_t done = 0; done < bytes; done += static_cast<int64_t>(block.size()))
        file.write(block.data(), std::min(bytes - done, static_cast<int64_t>(block.size())));
    file.flush();  // the destructor removes it
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

void compare(const std::string& directory, double gibibytes, int rounds) {
    const auto backend = make_cpu_backend(0);
    const auto communicator = make_single_communicator();
    const Weights weights(*backend, static_cast<int64_t>(gibibytes * (1 << 30)));
    const double megabytes = static_cast<double>(weights.bytes()) / 1e6;
    const std::string place = directory + "/train_qat_bench_" + std::to_string(::getpid());
    std::vector<double> saves, plain;
    for (int round = 0; round < rounds; ++round) {
        plain.push_back(megabytes / seconds_of([&] { write_as_dd(place + ".dd", weights.bytes()); }));
        saves.push_back(megabytes / seconds_of([&] {
                            save_checkpoint(place, *backend, *communicator, weights.contents());
                        }));
        std::filesystem::remove_all(place);
        std::printf("round %d: dd %.0f MB/s, save %.0f MB/s\n", round + 1, plain.back(), saves.back());
    }
    std::printf("%.0f MB: dd %.0f MB/s, save %.0f MB/s, %.0f%% of it (medians)\n", megabytes, median(plain),
                median(saves), 100 * median(saves) / median(plain));
}

}  // namespace

int main(int count, char** arguments) {
    const double gibibytes = count > 2 ? std::atof(arguments[2]) : 1;
    const int rounds = count > 3 ? std::atoi(arguments[3]) : 3;
    if (count < 2 || count > 4 || !(gibibytes > 0) || rounds < 1) {
        std::fprintf(stderr, "usage: train_qat_bench_checkpoint DIRECTORY [GIB [ROUNDS]]\n");
        return 2;
    }
    try {
        compare(arguments[1], gibibytes, rounds);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "train_qat_bench_checkpoint: error: %s\n", error.what());
        return 1;
    }
}
