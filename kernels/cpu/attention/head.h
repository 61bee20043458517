// What the two passes of attention share: sizes of a head, and memory for its tiles.
#pragma once

#include <cmath>

#include "kernels/cpu/products/elements.h"
#include "kernels/operations.h"

namespace train_qat {

constexpr float log2_e = 1.44269504088896341f, ln_2 = 0.69314718055994531f;

// Keys whose right operands lie together: a panel of a product's columns.
constexpr int64_t key_panel = 64;

// Sizes of one head. Padded, tiles have whole vectors; what is added is zero.
struct HeadSizes {
    explicit HeadSizes(const AttentionShape& shape)
        : positions(shape.sequence),
          dim(shape.head_dim),
          padded_positions(round_up(shape.sequence, key_panel)),
          padded_dim(round_up(shape.head_dim, 32)),
          inverse_root(1.0f / std::sqrt(static_cast<float>(shape.head_dim))) {}
    int64_t positions, dim, padded_positions, padded_dim;
    float inverse_root;
};

// Hands out consecutive pieces of a thread's scratch; every piece starts on a cache line.
class Scratch {
  public:
    explicit Scratch(float* memory) : next_(memory) {}
    template <typename Element>
    Element* take(int64_t count) {
        constexpr int64_t cache_line_floats = 16;
        static_assert(sizeof(Element) == sizeof(float));
        float* piece = next_;
        next_ += round_up(count, cache_line_floats);
        return reinterpret_cast<Element*>(piece);
    }

  private:
    float* next_;
};

}  // namespace train_qat
