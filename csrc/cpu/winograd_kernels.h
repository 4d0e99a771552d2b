// The transforms of Winograd's minimal filtering F(2x2, 3x3), compiled once per instruction set.
//
// A tile is 4 x 4 pixels of the input and 2 x 2 of the output (Lavin and Gray 2015, section 4.1).
// With Y = A^T [(G g G^T) . (B^T d B)] A the convolution of a tile takes 16 multiplications where
// the direct form takes 36; over many tiles they are 16 products of matrices, one a position.
#pragma once

#include <cstdint>

namespace fastres {

constexpr int kPositions = 16;
// Channels come in whole vectors of every instruction set.
constexpr int64_t kWinogradChannels = 16;

// `step`: values from one position to the next.
struct WinogradKernels {
  // B^T d B of one tile: pixels[4 * row + column], each [channels].
  void (*input)(const float* const* pixels, int64_t channels, float* v, int64_t step);
  // A^T m A: into pixels[2 * row + column].
  void (*output)(const float* m, int64_t step, int64_t channels, float* const* pixels);
  // A g A^T: the gradient with respect to m of pixels[2 * row + column].
  void (*gradient)(const float* const* pixels, int64_t channels, float* m, int64_t step);
  // G g G^T of `depth` by up to 32 filters of 9 taps each, in the order that tiles of a product
  // read; flip: the filters turned by half a turn.
  void (*weight)(const float* taps, int64_t depth_stride, int64_t column_stride, int64_t depth,
                 int64_t columns, bool flip, float* u, int64_t step);
  // G^T u G of `rows` (at most 16) by up to 32 filters: u[row * u_stride + column], summed over
  // `groups`; the taps of a row's filters are 9 apart.
  void (*weight_gradient)(const float* u, int64_t u_stride, int64_t step, int64_t groups,
                          int64_t group_step, int64_t rows, int64_t columns, float* taps,
                          int64_t column_stride);
  // c [rows, columns] = a [rows, depth] times a packed weight.
  void (*product)(const float* a, int64_t lda, int64_t rows, int64_t depth, const float* b,
                  int64_t columns, float* c, int64_t ldc);
};

extern const WinogradKernels winograd_default, winograd_avx2, winograd_avx512;

// The best of these for the processor at hand.
const WinogradKernels& winograd_kernels();

}  // namespace fastres
