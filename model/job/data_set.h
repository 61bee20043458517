// The shards that a run reads: those that its options name, or those that were prepared last.
#pragma once

#include <cstdint>
#include <string>

#include "data/loader.h"
#include "model/config.h"
#include "model/job/options.h"

namespace train_qat {

// Where data/prepare.py notes what it has prepared last; the program looks from the folder that it is started in:
//   {"train": "x_train_*.bin", "validation": "x_val_*.bin", "tokenizer": "x.model"}
// with paths relative to this file's folder, or absolute ones; null for what there is not.
inline constexpr const char* latest_data_record = "data/cache/latest.json";

// The options with the data set that was prepared last (see above) where -i is not given; -j and -tokenizer
// stay where they are. With -i nothing is added. std::runtime_error of one line that says how to prepare data
// when there is none; with -plan the options then stay as they are, and so they do with -eval_only and -j or -hellaswag.
Options with_prepared_data(const Options& options, const std::string& record = latest_data_record);

// For what mistakes of naming do in silence: std::runtime_error when text of -j is trained on too (find_shared_text
// in data/shared_text.h), and for a -prompt without -tokenizer. Nothing for files that are not given, and of the shards nothing with -plan.
void check_data(const Options& options);

// A line for people: what is read, and where else it could come from.
std::string describe_prepared_data(const DataFiles& data);

// The vocabulary that was asked for, or that of the training shards; 32,000 without any.
int64_t vocabulary_of(const Options& options);

// std::runtime_error if the training shards were made with more tokens than the model of -init_from has. Shards that do
// not say their vocabulary pass: every token is looked at when it is read.
void check_vocabulary(const Options& options, const ModelConfig& config);

// Training reads shuffled, each of `ranks` its part; validation the first sequences in order.
LoaderOptions training_loader(const Options& options, const ModelConfig& config, int rank, int ranks);
LoaderOptions validation_loader(const Options& options, const ModelConfig& config);

}  // namespace train_qat
