#include "model/evaluation/text_generation.h"

#include <string>

#include "model/evaluation/trained_model.h"
#include "model/generation/decoder.h"
#include "model/run/sample.h"
#include "model/units.h"

namespace train_qat {

namespace {

std::string tokens_per_second(int64_t tokens, double seconds) {
    return formatted("%.0f tokens/s", static_cast<double>(tokens) / seconds);
}

// The speed, and beside it that of reading weights and caches as fast as this device reads memory of that size.
std::string describe_speed(const Generation& generation, const Decoder& decoder) {
    std::string line = "prompt " + tokens_per_second(generation.prompt_tokens, generation.prompt_seconds) +
                       " (" + format_exact(generation.prompt_tokens) + " tokens)";
    if (generation.steps == 0) return line;
    const int64_t cache = decoder.cache_bytes(static_cast<int64_t>(generation.mean_position));
    const int64_t bytes = decoder.weight_bytes() + cache;
    const double bandwidth = decoder.backend().read_bandwidth(bytes);
    line = "generation " + tokens_per_second(generation.steps, generation.step_seconds) + ", memory allows " +
           formatted("%.0f", bandwidth / static_cast<double>(bytes)) + " (" +
           format_bytes(decoder.weight_bytes()) + " of weights, " + format_bytes(cache) +
           formatted(" of keys and values at %.0f GB/s); ", bandwidth / 1e9) + line;
    if (generation.times_reread > 0)
        line += "; the context was full " + format_exact(generation.times_reread) +
                (generation.times_reread == 1 ? " time" : " times");
    return line;
}

}  // namespace

void generate_text(const Options& options, Backend& backend, Communicator& communicator, std::ostream& text,
                   std::ostream& console) {
    Options one_sequence = options;
    one_sequence.batch = 1;
    // A Hugging Face folder has its own tokenizer.
    if (options.data.tokenizer.empty()) one_sequence.data.tokenizer = options.checkpoint;
    TrainedModel trained = open_trained_model(one_sequence, backend, communicator, console);
    if (communicator.rank() != 0) return;
    const TextSample sample(one_sequence, trained.model->config(), *options.sample, "-sample");
    Decoder decoder(*trained.model);
    trained.model.reset();
    const Generation generation =
        sample.write(decoder, [&text](const std::string& piece) { text << piece << std::flush; });
    text << "\n\n" << describe_speed(generation, decoder) << std::endl;
}

}  // namespace train_qat
