#include "kernels/cpu/levels/levels.h"

#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "kernels/cpu/platform/matrix_tiles.h"

// What backend_factory.cpp defines in each level. build.cmake says which of them are compiled.
extern "C" {
train_qat::Backend* train_qat_cpu_backend_native(int threads, train_qat::MatmulUnit unit);
train_qat::Backend* train_qat_cpu_backend_avx2(int threads, train_qat::MatmulUnit unit);
train_qat::Backend* train_qat_cpu_backend_avx512(int threads, train_qat::MatmulUnit unit);
train_qat::Backend* train_qat_cpu_backend_avx512_bf16(int threads, train_qat::MatmulUnit unit);
}

namespace train_qat {

namespace {

#if defined(TRAIN_QAT_CPU_LEVELS)

// x86-64-v3 and v4, by the instructions in which processors differ.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
bool has_amx() {
    return has_avx512_bf16() && may_use_matrix_tiles();
}

constexpr CpuLevel levels[] = {
    {"amx", MatmulUnit::tiles, has_amx, train_qat_cpu_backend_avx512_bf16},
    {"avx512_bf16", MatmulUnit::vectors, has_avx512_bf16, train_qat_cpu_backend_avx512_bf16},
    {"avx512", MatmulUnit::vectors, has_avx512, train_qat_cpu_backend_avx512},
    {"avx2", MatmulUnit::vectors, has_avx2, train_qat_cpu_backend_avx2}};

#else

constexpr CpuLevel levels[] = {
    {"native_amx", MatmulUnit::tiles, may_use_matrix_tiles, train_qat_cpu_backend_native},
    {"native", MatmulUnit::vectors, [] { return true; }, train_qat_cpu_backend_native}};

#endif

}  // namespace

std::span<const CpuLevel> cpu_levels() {
    return levels;
}

const CpuLevel& find_cpu_level(const std::string& name) {
    std::string names;
    for (const CpuLevel& level : levels) {
        if (!level.runs_here()) continue;
        if (name.empty() || name == level.name) return level;
        names += (names.empty() ? "" : ", ") + std::string(level.name);
    }
    if (names.empty())
        throw std::runtime_error(
            "-device cpu: this processor has no AVX2; a build of its own runs there: "
            "CMAKE_FLAGS=-DTRAIN_QAT_NATIVE=ON");
    throw std::runtime_error("TRAIN_QAT_CPU_LEVEL=" + name +
                             ": is no level that this program and processor have: " + names);
}

std::unique_ptr<Backend> make_cpu_backend(int threads) {
    const char* const name = std::getenv("TRAIN_QAT_CPU_LEVEL");
    const CpuLevel& level = find_cpu_level(name != nullptr ? name : "");
    return std::unique_ptr<Backend>(level.make(threads, level.unit));
}

}  // namespace train_qat
