// The grid of a sweep: a JSON file such as
//
//   {"n": ["5M", "10M"], "tokens": "100M", "b": [2, 4], "qat_frac": [0.1, 0.2, "auto"], "seed": [1, 2]}
//
// whose keys are flags (n, tokens, b, qat_frac, cooldown, seed, lr) and whose values are one value or an
// array of them, as on the command line: numbers, or texts such as "1.5M", "auto", "fused". The sweep trains
// every combination; all other settings are those of the command line.
#pragma once

#include <string>
#include <vector>

namespace train_qat {

struct SweepValue {
    std::string text;  // for the flag: as written in the file
    std::string name;  // for the name of a run: equal values have equal names ("1.5M" and 1500000)
};

struct SweepAxis {
    std::string key;  // of the flag, without the dash
    std::vector<SweepValue> values;
};

struct SweepGrid {
    std::string path;
    std::vector<SweepAxis> axes;  // in the order n, tokens, b, qat_frac, cooldown, seed, lr
};

// Throws std::runtime_error with one line that names the file and the key: an unknown or repeated key, no
// values, a value twice (also in two spellings), a value that its flag can't take, damaged JSON, more than
// 100,000 runs.
SweepGrid read_sweep_grid(const std::string& path);

struct SweepRun {
    std::string name;  // "n5M_t3M_b4_f0.2_fused_s1_lr0.001": the keys of the grid; "run" if only one
    std::vector<std::string> flags;  // {"-n", "5M", "-b", "4", ...}
};

// All combinations, the last axis varying fastest. Names are unique, and of letters, digits and . _ + - only.
std::vector<SweepRun> sweep_runs(const SweepGrid& grid);

// `base` without the flags that `flags` gives anew, in whatever spelling (-b 4, --b 4, -b=4, --b=4), followed
// by `flags`: the command line takes every flag once.
std::vector<std::string> with_flags(const std::vector<std::string>& base,
                                    const std::vector<std::string>& flags);

}  // namespace train_qat
