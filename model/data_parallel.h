// Training on many ranks, each with its own part of every batch: gradients are summed over ranks while the
// backward pass goes on, each rank finishes the sums of its own rows, and new weights come to all.
//
// Two ways to divide the optimizer (-zero):
//   0   every rank keeps and updates everything: ranks exchange finished gradients
//   1   every rank keeps and updates its own rows alone (Parameters with a StateShard; ZeRO stage 1, arXiv
//       1910.02054): ranks exchange weights as matmuls read them, which in the quantization-aware range are
//       packed codes and scales
// Both do the same arithmetic in the same order: the same bits come out.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/parameters.h"

namespace train_qat {

class DataParallel {
  public:
    // Parameters either keep everything or this rank's shard: std::logic_error else.
    DataParallel(Backend& backend, Parameters& parameters, Communicator& communicator);

    Communicator& communicator() { return communicator_; }
    bool alone() const { return communicator_.size() == 1; }
    bool sharded() const { return parameters_.shard().parts > 1; }

    // The backward pass has finished the gradients of this layer (-1: embedding and last norm): starts to sum
    // them over ranks, beside what is enqueued next. Once for each layer of a step, in the same order on all
    // ranks.
    void sum_gradients(int64_t layer);

    // Rows that this rank finishes: the gradients of all others are undefined from sum_gradients on. After
    // the last sum_gradients of a step; what is enqueued next sees the sums.
    std::vector<ParameterRows> own_rows();

    // Which parameter own_rows()[i] of rank `rank` belongs to, for each i.
    std::vector<size_t> owned_parameters(int rank) const;

    // Without shards: the finished gradients of weights and scales come to all ranks. Nothing to do else.
    void gather_gradients();
    // With shards: the matmuls' copies of all ranks become what their owners have, and so do norms. After
    // quantize() or adamw_and_quantize() of the kept rows. Nothing to do else.
    void gather_weights();

    // Bytes that this rank sends in an optimizer step with the present grids.
    struct StepTraffic {
        int64_t gradients = 0;
        int64_t weights = 0;           // with shards
        int64_t unpacked_weights = 0;  // what they would be in the compute type
        int64_t total() const { return gradients + weights; }
    };
    StepTraffic step_traffic();

  private:
    void find_messages();
    std::vector<RankRows> gradients_of(int64_t layer) const;
    std::vector<RankRows> finished_gradients() const;
    std::vector<RankRows> weight_arrays() const;

    Backend& backend_;
    Parameters& parameters_;
    Communicator& communicator_;
    // Messages of the matrices, for the present grids.
    bool found_ = false, found_quantized_ = false;
    std::vector<size_t> matrices_;  // numbers of parameters
    std::vector<ParameterRows> whole_;
    std::vector<WeightMessage> messages_;
};

}  // namespace train_qat
