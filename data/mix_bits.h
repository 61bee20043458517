// SplitMix64's output function: random-looking bits as a function of a number, the same on every machine.
#pragma once

#include <cstdint>

namespace train_qat {

// A bijection of 64-bit integers in which every input bit flips about half of the output bits. Source:
// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
constexpr uint64_t mix_bits(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

}  // namespace train_qat
