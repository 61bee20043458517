// A keyed pseudo-random permutation of 0 … size-1 in constant memory: shuffles a corpus of any size.
#pragma once

#include <bit>
#include <cstdint>

#include "data/mix_bits.h"

namespace train_qat {

// A Feistel network of `rounds` rounds permutes the 2h-bit integers, whatever its round function F is:
//   (left, right) -> (right, left XOR F_k(right)).
// h is the smallest width with 2^(2h) >= size. Results >= size are fed back until one is inside ("cycle
// walking"), which keeps it a bijection of [0, size); as 2^(2h) < 4 * size, this takes under 4 turns on
// average. Sources: Luby, Rackoff, "How to construct pseudorandom permutations from pseudorandom functions"
// (1988); Black, Rogaway, "Ciphers with arbitrary finite domains" (2002).
class Permutation {
  public:
    // size >= 1 and at most 2^62. Equal (size, seed, epoch) give the same permutation on every machine.
    Permutation(uint64_t size, uint64_t seed, uint64_t epoch)
        : size_(size),
          half_bits_((std::bit_width(size - 1) + 1) / 2),
          key_(mix_bits(mix_bits(seed) ^ epoch)) {}

    // The image of index, which must be below size.
    uint64_t operator()(uint64_t index) const {
        do {
            index = encrypt(index);
        } while (index >= size_);
        return index;
    }

  private:
    static constexpr uint64_t rounds = 8;

    uint64_t encrypt(uint64_t value) const {
        const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
        uint64_t left = value >> half_bits_, right = value & mask;
        for (uint64_t round = 0; round < rounds; ++round) {
            // The high bits: they depend on all bits of the mixed input.
            const uint64_t noise = mix_bits(key_ ^ mix_bits(right << 4 | round)) >> 32;
            const uint64_t next = left ^ (noise & mask);
            left = right;
            right = next;
        }
        return left << half_bits_ | right;
    }

    uint64_t size_;
    int half_bits_;
    uint64_t key_;
};

}  // namespace train_qat
