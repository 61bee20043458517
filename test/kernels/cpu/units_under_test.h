// What computes the CPU's products, for tests that run every way of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/levels/levels.h"

namespace train_qat::test {

// Each level of this build that runs here, and the emulation of tiles in those that multiply bfloat16.
struct UnitUnderTest {
    std::string name;
    const CpuLevel* level;
    MatmulUnit unit;
    std::unique_ptr<Backend> make(int threads) const {
        return std::unique_ptr<Backend>(level->make(threads, unit));
    }
};

inline std::vector<UnitUnderTest> units_under_test() {
    std::vector<UnitUnderTest> units;
    for (const CpuLevel& level : cpu_levels()) {
        if (!level.runs_here()) continue;
        units.push_back({level.name, &level, level.unit});
        if (level.unit == MatmulUnit::vectors)
            units.push_back(
                {std::string(level.name) + " with emulated tiles", &level, MatmulUnit::emulated_tiles});
    }
    return units;
}

}  // namespace train_qat::test
