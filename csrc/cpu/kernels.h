// The loops of the CPU operators, compiled once per instruction set.
//
// A dense channels_last activation is a flat array with period C: element i belongs to channel
// i % C. Every kernel walks a run of whole rows as one flat array with a period W that is a
// multiple of C and long enough to vectorise; its vectors are [W], the [C] ones repeated. Few
// channels are thus as fast as many, and odd ones need no special case.
#pragma once

#include <cstdint>

namespace fastres {

struct bf16 {
  uint16_t bits;
};

enum class Shortcut { none, identity, bn };

// One branch: (y - mean) * scale + bias.
struct BranchVectors {
  const float* mean;
  const float* scale;
  const float* bias;
};

// dy = a * g + b * (y - mean) + c, column by column; b and c are null for a frozen branch.
struct GradientVectors {
  const float* a;
  const float* b;
  const float* c;
};

template <typename T>
struct Kernels {
  // Per lane of the period: pivot (the first row), sum and sum of squares of y - pivot.
  void (*statistics)(const T* y, int64_t n, int64_t period, float* pivot, float* sum,
                     float* squares);
  // out = act(branch(y) + shortcut).
  void (*apply)(const T* y, T* out, int64_t n, int64_t period, BranchVectors branch,
                const T* shortcut, BranchVectors s_branch, Shortcut kind, bool relu);
  // Per lane: sums of g, g * (y - mean) and, where s_y is given, g * (s_y - s_mean).
  void (*reduce)(const T* dout, const T* out, const T* y, const T* s_y, int64_t n, int64_t period,
                 BranchVectors branch, const float* s_mean, bool relu, float* sum_g, float* sum_gd,
                 float* sum_gd_s);
  // dy, and where ds is given the shortcut's gradient: g, or its branch's where s_y is given.
  void (*backward)(const T* dout, const T* out, const T* y, const T* s_y, int64_t n,
                   int64_t period, BranchVectors branch, GradientVectors gradient,
                   const float* s_mean, GradientVectors s_gradient, bool relu, T* dy, T* ds);
  // One row of the join with a padded shortcut that has s_channels of the row's channels.
  void (*apply_pad_row)(const T* y, T* out, int64_t channels, BranchVectors branch,
                        const T* shortcut, int64_t s_channels, bool relu);
  // g of the first `channels` of a row: dout where the ReLU let through; out null: no ReLU.
  void (*mask_row)(const T* dout, const T* out, int64_t channels, T* g);
  // One pixel of max pooling: the maximum over `count` pixels of x, which lie at the places
  // `which` of the window, and the place it came from. The last NaN wins, as in torch. `scratch`
  // holds 4 * channels.
  void (*max_window)(const T* const* pixels, const uint8_t* which, int64_t count,
                     int64_t channels, T* out, uint8_t* index, float* scratch);
  // One pixel of its gradient: the sum of those `count` gradients whose maximum came from here.
  void (*max_gradient)(const T* const* gradients, const uint8_t* const* indices,
                       const uint8_t* which, int64_t count, int64_t channels, T* dx, float* sum);
};

extern const Kernels<float> kernels_float_default, kernels_float_avx2, kernels_float_avx512;
extern const Kernels<bf16> kernels_bf16_default, kernels_bf16_avx2, kernels_bf16_avx512,
    kernels_bf16_avx512bf16;

// The best of these for the processor at hand.
template <typename T>
const Kernels<T>& kernels();

}  // namespace fastres
