// The CPU backend, compiled once for each level of instructions (build.cmake): one program runs well on every processor,
// also where another machine built it. make_cpu_backend (kernels/backend.h) takes the best level that this processor runs.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "kernels/cpu/platform/matmul_unit.h"

namespace train_qat {

struct CpuLevel {
    const char* name;     // "avx2"
    MatmulUnit unit;      // that its matmuls of bfloat16 use
    bool (*runs_here)();  // whether this processor has the instructions
    Backend* (*make)(int threads, MatmulUnit unit);
};

// All levels of this build, the best first.
std::span<const CpuLevel> cpu_levels();

// The level of a name, or with an empty one the best that runs here. std::runtime_error when there is none.
const CpuLevel& find_cpu_level(const std::string& name);

}  // namespace train_qat
