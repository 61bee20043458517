// A short training of a tiny model on many ranks, through the switch, and what came out of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/data_parallel.h"
#include "test/support/tiny_model.h"

namespace train_qat::test {

struct ParallelCase {
    double bits = 4;
    int64_t group = 0;
    DType dtype = DType::float32;
    int zero = 1;
    int64_t micro_batches = 1;  // of a rank
    int64_t steps = 20, fp_steps = 10;
};

std::string text_of(const ParallelCase& c, int ranks);

// Tokens of one rank in a step.
int64_t tokens_of_step(const ParallelCase& c, const ModelConfig& config);

// Some rows of an array.
struct Rows {
    int64_t first = 0, whole = 0;  // rows
    int64_t columns = 0;
    std::vector<float> values;
};

using Arrays = std::map<std::string, Rows>;

// What one rank had on the way and has at the end.
struct RankTrained {
    struct Step {
        Arrays before,
            gradients;  // what it keeps: masters, moments and scales; gradients of masters and scales
    };
    std::vector<Step> steps;
    std::vector<double> losses, norms;  // of all ranks together
    double validation_loss = 0;         // of the same sample on each rank
    Arrays state;                       // masters, moments and scales in the end
    DataParallel::StepTraffic fp_traffic, qat_traffic;
    Traffic counted_fp, counted_qat;  // by the communicator, of the last step of each range
};

// By all ranks together. Rank r of W trains on the micro-batches r, r + W ... of the same sequence. With a leader, every
// step, and the validation, starts from the leader's state: differences cannot add up.
RankTrained train_rank(const ParallelCase& c, const ModelConfig& config, Backend& backend,
                       Communicator& communicator, const RankTrained* leader = nullptr);

// "" or the first difference: losses, and of the arrays the rows that both have.
std::string difference(const RankTrained& a, const RankTrained& b);

// "" or where a rank that followed `leader`, one process that trained on the same global batches of `tokens` tokens,
// went another way than the order of float32 sums explains.
std::string departure(const RankTrained& follower, const RankTrained& leader, int64_t tokens);

}  // namespace train_qat::test
