// Matrix products over rows of activations, with what surrounds them done while a tile is at hand.
// Compiled once per instruction set, as kernels.h.
//
// A product is taken in tiles of a few rows by 32 columns whose sums stay in registers. Its
// operands are "units": fp32 values, or pairs of bf16 where the processor multiplies those. Pairs
// join two values along the depth of the product. bf16 operands are widened to fp32 units
// elsewhere; sums are fp32 in both.
#pragma once

#include "kernels.h"

namespace fastres {

constexpr int64_t kTileColumns = 32;
// Rows of a product that are put together at once: a cache line of a transposed one.
constexpr int64_t kStripRows = 16;
// The most rows of a panel of an outer product: the columns of a tile stay in the first cache.
constexpr int64_t kRowsOfAPanel = 114;

inline int64_t padded_columns(int64_t columns) {
  return (columns + kTileColumns - 1) / kTileColumns * kTileColumns;
}

// Rows of an activation as a matrix: every pixel of it, or every stride-th one.
template <typename T>
struct RowsOf {
  const T* base;
  int64_t channels;
  int64_t height, width;        // of the pixels taken
  int64_t height_in, width_in;  // of the activation
  int64_t stride_h, stride_w;

  bool dense() const { return stride_h == 1 && stride_w == 1; }
  const T* at(int64_t row) const {
    if (dense()) return base + row * channels;
    const int64_t line = row / width, image = line / height;
    const int64_t h = (line - image * height) * stride_h, w = (row - line * width) * stride_w;
    return base + ((image * height_in + h) * width_in + w) * channels;
  }
};

// The pixels of an activation that a kernel covers for each pixel of its output, as one row: place
// by place in the kernel, all channels of each.
template <typename T>
struct PatchesOf {
  const T* base;
  const T* zeros;  // [channels]: what lies beyond the edge
  int64_t channels, height, width;
  int64_t height_out, width_out;
  int64_t kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t column;  // the first one taken
};

// What an operand is computed from, column by column. d = value - pivot, rounded to T; value is
//   bn:      relu((y - mean) * scale + bias) rounded to T, or y itself where branch.mean is null
//   masked:  dout where !(out <= 0), else 0; out null: dout
//   dy:      a * g + b * (y - mean) + c with g = dout masked by out, by y again, or not at all
//   patches: the activation itself
template <typename T>
struct Operand {
  RowsOf<T> y{};               // bn, dy
  const T* dout = nullptr;     // masked, dy
  const T* out = nullptr;      // masked, dy; may be null
  BranchVectors branch{};      // bn, dy
  GradientVectors gradient{};  // dy: gradient.a is null elsewhere
  const float* pivot = nullptr;  // bn; may be null
  PatchesOf<T> patches{};      // base is null elsewhere
  bool relu = false;           // dy: mask by y again where out is null
  int64_t channels = 0;        // columns taken
  int64_t step = 0;            // values from one row of dout, out and (dy) y to the next

  // Some of the columns.
  Operand columns(int64_t first, int64_t count) const {
    const auto moved = [first](auto* p) { return p == nullptr ? p : p + first; };
    Operand part = *this;
    part.y.base = moved(y.base);
    part.dout = moved(dout);
    part.out = moved(out);
    part.branch = {moved(branch.mean), moved(branch.scale), moved(branch.bias)};
    part.gradient = {moved(gradient.a), moved(gradient.b), moved(gradient.c)};
    part.pivot = moved(pivot);
    part.patches.column += first;
    part.channels = count;
    return part;
  }
};

// How the units of an operand lie: by rows, so that the depth is the channels; or transposed, so
// that the depth is the rows.
enum class Order { rows, transposed };

enum class Residual { none, identity, affine, product };

// One factor pair of a product by rows: units [rows, depth] times packed [depth, columns].
struct Factor {
  const void* a;
  int64_t lda;  // in values
  const void* b;
  int64_t depth;
};

template <typename T>
struct ExpandPanel {
  Factor main, projection;  // projection.a is null where there is none
  int64_t first, rows, columns;
  const float *scale, *shift, *s_scale, *s_shift;
  Residual kind;
  RowsOf<T> shortcut;  // identity (perhaps with fewer channels) and affine
  bool relu;
  T* out;
};

template <typename T>
struct DataPanel {
  Factor gradient, mixing;  // mixing.a is null where there is none
  int64_t first, rows, columns;
  const float* constant;  // may be null
  const T* y;
  BranchVectors branch;   // branch.mean null: neither mask nor sums
  float *sum_g, *sum_gd;  // [columns] of this panel, added to
  T* out;
};

template <typename T>
struct InputPanel {
  Factor main;
  int64_t first, rows, columns;
  const T* x;  // null: the gradient is not masked
  const T *residual, *residual_mask;  // may be null
  int64_t residual_channels, height, width, height_out, width_out, stride_h, stride_w;
  T* out;
};

template <typename T>
struct BlockKernels {
  bool pairs;  // units are pairs of bf16
  // Units of rows [first, first + rows); columns up to ld are zero. Sums of d, before rounding,
  // are added to `sums` [channels] where given.
  void (*pack)(const Operand<T>& operand, int64_t first, int64_t rows, Order order, int64_t ld,
               void* to, float* sums);
  // Factor::b of up to 32 columns of a matrix [depth, columns] with any strides, rounded to T.
  void (*pack_weight)(const float* matrix, int64_t depth_stride, int64_t column_stride,
                      int64_t depth, int64_t columns, void* to);
  // c [m, n] (onto: +)= a^T b over `rows` rows of transposed operands. Rows of c from column
  // j + 32 + below on are left out in the columns from j: what lies below a diagonal.
  void (*accumulate)(const void* a, int64_t lda, int64_t m, const void* b, int64_t ldb, int64_t n,
                     int64_t rows, float* c, int64_t ldc, int64_t below, bool onto);
  // The same for b as it lies, rows of n values `step` apart: pairs are joined as they are first
  // used. `rows` is even and no more than kRowsOfAPanel, n a multiple of 32. Null without pairs.
  void (*accumulate_rows)(const void* a, int64_t lda, int64_t m, const T* b, int64_t step,
                          int64_t n, int64_t rows, float* c, int64_t ldc, bool onto);
  // The sum of `groups` parts in their order, up to kStripRows rows of `columns`. Steps in values;
  // either row_step or column_step is 1.
  void (*add_groups)(const float* parts, int64_t ld, int64_t group_step, int64_t groups,
                     int64_t rows, int64_t columns, float* to, int64_t row_step,
                     int64_t column_step);
  void (*expand)(const ExpandPanel<T>& panel);
  void (*data)(const DataPanel<T>& panel);
  void (*input)(const InputPanel<T>& panel);
  // The same for a gradient that a convolution has left in place: out holds it already.
  void (*mask_with_sums)(const DataPanel<T>& panel);
  void (*finish_input)(const InputPanel<T>& panel);
};

extern const BlockKernels<float> block_kernels_float_default, block_kernels_float_avx2,
    block_kernels_float_avx512;
extern const BlockKernels<bf16> block_kernels_bf16_default, block_kernels_bf16_avx2,
    block_kernels_bf16_avx512, block_kernels_bf16_avx512bf16;

// The best of these for the processor at hand.
template <typename T>
const BlockKernels<T>& block_kernels();

}  // namespace fastres
