// Command lines, grids of sweeps, laws.
#include <ostream>
#include <sstream>

#include "model/job/law_file.h"
#include "model/job/options.h"
#include "model/sweep/grid.h"
#include "test/fuzz/targets.h"

namespace train_qat::fuzz {

namespace {

// One argument a line.
std::vector<std::string> arguments_of(const std::string& bytes) {
    std::vector<std::string> arguments;
    std::istringstream lines(bytes);
    for (std::string line; std::getline(lines, line);) arguments.push_back(line);
    return arguments;
}

const char* const law =
    R"({"format": "train_qat scaling law 2", "source": {"runs": 4, "vocabulary": 64, "data": ["0123456789abcdef"],
"cooldown": "classic"}, "fitted_range": {"parameters": [254528, 1008576], "tokens": [1.5e6, 2.5e7],
"tokens_per_parameter_byte": [6.1, 786], "qat_fraction": [0.03, 0.68], "bits": [1, 2, 4], "full_precision": null},
"loss_law": null, "fraction_law": {"a": 5.1, "bootstrap": {"a": [5,5,5,5,5,5,5,5,5,5,5,5,5,5,5,5,5,5,5,5],
"misfit": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}}, "optimal_fraction": "fraction_law"})";

}  // namespace

std::vector<Target> settings_targets() {
    return {
        {"command_line",
         {"-n\n5M\n-b\n4\n-qat_frac\n0.25\n-tokens\n20M\n-seed\n7",
          "--lr=1e-3\n-warmup\n0.02\n-memory\n1.5GB",
          "-b=1.58\n-group\n32\n-schedule\ncosine\n-until\n100\n-resume_from\n50",
          "-n\nauto\n-flops\n1e18\n-law\nlaw.json\n-cooldown\nclassic"},
         [](const std::string& bytes, const std::string&) {
             std::ostream nowhere(nullptr);
             parse_command_line(arguments_of(bytes), nowhere);
         }},
        {"grid",
         {R"({"n": ["5M", "10M"], "tokens": "100M", "b": [2, 4], "qat_frac": [0.1, "auto"], "seed": [1, 2]})",
          R"({"cooldown": ["fused", "classic"], "lr": [1e-3, 0.002]})"},
         [](const std::string&, const std::string& path) { sweep_runs(read_sweep_grid(path)); }},
        {"law", {law}, [](const std::string&, const std::string& path) { read_scaling_law(path); }}};
}

}  // namespace train_qat::fuzz
