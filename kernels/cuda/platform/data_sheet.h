// Peak rates of GPUs, for MFU and for choosing units in benchmarks: dense bfloat16 with float32 accumulation,
// as NVIDIA's data sheets state it for the card's boost clock; other cards are estimated from their
// architecture.
#pragma once

#include <string_view>

namespace train_qat {

struct PeakRate {
    std::string_view name;  // part of the device's name; the first match counts
    double bfloat16_teraflops;
};

inline constexpr PeakRate peak_rates[] = {
    {"B200", 2250}, {"GH200", 989},     {"H200", 989},     {"H100 PCIe", 756}, {"H100 NVL", 835},
    {"H100", 989},  {"A100", 312},      {"A10G", 70},      {"A10", 125},       {"L40S", 362},
    {"L4", 121},    {"RTX A6000", 155}, {"RTX 5090", 209}, {"RTX 4090", 165},  {"RTX 3090", 71},
};

// Whether the rate of a card of this name is its data sheet's.
inline bool in_data_sheet(std::string_view name) {
    for (const PeakRate& rate : peak_rates)
        if (name.find(rate.name) != std::string_view::npos) return true;
    return false;
}

// FLOP/s; multiprocessors times clock (Hz) times what a multiprocessor does per clock where the name is
// unknown.
inline double bfloat16_peak_flops(std::string_view name, int major, int minor, int multiprocessors,
                                  double clock) {
    for (const PeakRate& rate : peak_rates)
        if (name.find(rate.name) != std::string_view::npos) return rate.bfloat16_teraflops * 1e12;
    double flops_per_clock = 1024;
    if (major == 8 && minor == 0) flops_per_clock = 2048;
    if (major == 9) flops_per_clock = 4096;
    if (major == 10) flops_per_clock = 8192;
    return flops_per_clock * multiprocessors * clock;
}

}  // namespace train_qat
