// train_qat_logits: what a model says to a sequence of tokens, for comparisons with other programs.
//
//   train_qat_logits TOKENS LOGITS -e CHECKPOINT|FOLDER [flags of -eval_only]
//
// TOKENS: int32 ids of one sequence, at most the model's. LOGITS: the file to make, (tokens, vocabulary) float32.
#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/evaluation/trained_model.h"
#include "model/job/failure.h"
#include "model/job/job.h"

namespace train_qat {

namespace {

std::vector<int32_t> read_tokens(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    if (bytes.empty() || bytes.size() % sizeof(int32_t) != 0) throw std::runtime_error(path + ": no int32 tokens");
    const auto* tokens = reinterpret_cast<const int32_t*>(bytes.data());
    return {tokens, tokens + bytes.size() / sizeof(int32_t)};
}

void write_logits(const std::string& tokens_path, const std::string& logits_path, const Options& options, Job& job) {
    std::ostream nowhere(nullptr);
    const std::unique_ptr<Backend> backend = job.make_backend(options, job.size(), nowhere);
    const std::unique_ptr<Communicator> communicator = job.connect(job.team(job.size()), *backend);
    TrainedModel trained = open_trained_model(options, *backend, *communicator, nowhere);
    const std::vector<int32_t> tokens = read_tokens(tokens_path);
    std::vector<float> logits(tokens.size() * static_cast<size_t>(trained.model->config().vocabulary));
    trained.model->logits(tokens.data(), 0, static_cast<int64_t>(tokens.size()), logits.data());
    std::ofstream file(logits_path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(logits.data()),
               static_cast<std::streamsize>(logits.size() * sizeof(float)));
    if (!file.flush()) throw std::runtime_error(logits_path + ": cannot be written");
}

}  // namespace
}  // namespace train_qat

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    std::vector<std::string> flags = {"-eval_only"};
    flags.insert(flags.end(), argv + 3, argv + argc);
    return train_qat::run_to_exit_code(flags, [&](const auto&, const train_qat::Options& options, train_qat::Job& job) {
        train_qat::write_logits(argv[1], argv[2], options, job);
        return 0;
    });
}
