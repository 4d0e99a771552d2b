// What the operators of whole blocks share: rows of activations in panels, packed operands, sums.
#pragma once

#include <functional>

#include "block_kernels.h"
#include "operators.h"

namespace fastres {

// One branch's vectors, or none: then the operand is y as it is.
inline BranchLanes lanes_or_none(const OptionalTensor& mean, const OptionalTensor& invstd,
                                 const OptionalTensor& weight, const OptionalTensor& bias) {
  return mean.has_value() ? BranchLanes(*mean, *invstd, weight, bias) : BranchLanes();
}

inline BranchVectors vectors_or_null(const BranchLanes& lanes) {
  return lanes.mean.empty() ? BranchVectors{} : lanes.vectors();
}

// Every stride-th pixel of a dense activation as rows.
template <typename T>
RowsOf<T> rows_of(const at::Tensor& y, at::IntArrayRef stride) {
  return {data<T>(y),
          y.size(1),
          (y.size(2) + stride[0] - 1) / stride[0],
          (y.size(3) + stride[1] - 1) / stride[1],
          y.size(2),
          y.size(3),
          stride[0],
          stride[1]};
}

template <typename T>
int64_t count_rows(const at::Tensor& y, const RowsOf<T>& rows) {
  return y.size(0) * rows.height * rows.width;
}

// Bytes of a panel's operands: they stay in the second cache beside a piece of the weight.
constexpr int64_t kPanelBytes = int64_t{400} << 10;

// Whether a convolution is taken as a product of our own: 1x1, where products are of pairs. A weight
// is then rounded as it is packed, a prologue needs no tensor, and the statistics are taken while
// their rows are in the cache.
bool products_serve(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                    at::IntArrayRef padding, int64_t groups);

// Whether a convolution is 3x3 at stride 1 with padding 1, as a residual block's are.
bool is_plain_3x3(const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                  at::IntArrayRef dilation, int64_t groups);

// A [C] vector in fp32, padded to whole tiles.
std::vector<float> padded_vector(const OptionalTensor& vector, int64_t length);

// Rows in panels of equal height. The split depends on the shape alone, so no result depends on
// the number of threads.
class Panels {
 public:
  // Panels of at most `budget` bytes, where a row takes `row_bytes`, and `most` rows.
  Panels(int64_t rows, int64_t row_bytes, int64_t budget, int64_t most = 448);

  int64_t count() const { return count_; }
  int64_t first(int64_t panel) const { return rows_ * panel / count_ / 2 * 2; }
  int64_t rows(int64_t panel) const { return end(panel) - first(panel); }
  // No panel has more rows.
  int64_t most() const { return height_ + 2; }

 private:
  int64_t end(int64_t panel) const { return panel + 1 == count_ ? rows_ : first(panel + 1); }

  int64_t rows_, height_, count_;
};

// A piece of memory for each thread.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  char* mine();

 private:
  int64_t bytes_;
  at::Tensor memory_;
};

// A piece of memory for all of them.
class Shared {
 public:
  explicit Shared(int64_t bytes) : memory_(at::empty({bytes + 64}, at::kByte)) {}
  float* floats() {
    char* const start = static_cast<char*>(memory_.mutable_data_ptr());
    return reinterpret_cast<float*>(start + (64 - reinterpret_cast<uintptr_t>(start) % 64) % 64);
  }

 private:
  at::Tensor memory_;
};

// Two column sums, taken panel by panel and added up in the order of the panels.
class ColumnSums {
 public:
  explicit ColumnSums(int64_t columns) : columns_(columns) {}

  void reserve(int64_t panels) { partial_.assign(panels * 2 * columns_, 0.0f); }
  float* first(int64_t panel) { return partial_.data() + panel * 2 * columns_; }
  float* second(int64_t panel) { return first(panel) + columns_; }

  // The totals as fp32 vectors, the second times `factor` [columns].
  std::tuple<at::Tensor, at::Tensor> totals(const std::vector<float>& factor,
                                            const at::Tensor& like) const;

 private:
  int64_t columns_;
  std::vector<float> partial_;
};

// A matrix in the order that tiles read, rounded to T.
template <typename T>
class PackedWeight {
 public:
  PackedWeight() = default;
  // of a matrix whose element (depth k, column c) is matrix[k, c]
  explicit PackedWeight(const at::Tensor& matrix);
  const void* units() const { return units_.defined() ? units_.const_data_ptr() : nullptr; }
  int64_t depth() const { return depth_; }

 private:
  int64_t depth_ = 0;
  at::Tensor units_;
};

// Bytes of a row of units by rows, and the length of such a row in values: whole pairs.
template <typename T>
int64_t unit_bytes() {
  return block_kernels<T>().pairs ? 2 : 4;
}
inline int64_t whole_pairs(int64_t length) { return (length + 1) / 2 * 2; }

// The length of a row of `length` units in a buffer of ours: a cache line more. Where rows lie
// some power of two apart they meet in one set of the first cache and drive each other out.
inline int64_t staggered(int64_t length) { return (length + 15) / 16 * 16 + 16; }

// The same for a row of values by rows.
template <typename T>
int64_t staggered_row(int64_t values) {
  const int64_t line = 64 / unit_bytes<T>();
  return (values + line - 1) / line * line + line;
}

// Operands of dense tensors.
template <typename T>
Operand<T> bn_operand(const at::Tensor& y, at::IntArrayRef stride, const BranchLanes& branch,
                      const float* pivot) {
  Operand<T> operand;
  operand.y = rows_of<T>(y, stride);
  operand.branch = vectors_or_null(branch);
  operand.pivot = pivot;
  operand.channels = y.size(1);
  return operand;
}

template <typename T>
Operand<T> masked_operand(const at::Tensor& dout, const at::Tensor& out) {
  Operand<T> operand;
  operand.dout = data<T>(dout);
  operand.out = out.defined() ? data<T>(out) : nullptr;
  operand.channels = operand.step = dout.size(1);
  return operand;
}

// `zeros` [channels of x] and x stay where they are.
template <typename T>
Operand<T> patches_operand(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef kernel,
                           at::IntArrayRef stride, at::IntArrayRef padding,
                           at::IntArrayRef dilation, const at::Tensor& zeros) {
  Operand<T> operand;
  operand.patches = {data<T>(x),  data<T>(zeros), x.size(1),  x.size(2),  x.size(3),
                     dy.size(2),  dy.size(3),     kernel[1],  stride[0],  stride[1],
                     padding[0],  padding[1],     dilation[0], dilation[1], 0};
  operand.channels = kernel[0] * kernel[1] * x.size(1);
  return operand;
}

// Whether an operand is the values of dense rows as they are.
template <typename T>
bool is_plain(const Operand<T>& operand) {
  return operand.patches.base == nullptr && operand.gradient.a == nullptr &&
         operand.out == nullptr && operand.pivot == nullptr && operand.branch.mean == nullptr &&
         (operand.dout != nullptr || operand.y.dense());
}

// The values of such an operand from a row on, and from one row to the next.
template <typename T>
struct PlainRows {
  PlainRows(const Operand<T>& operand, int64_t first)
      : step(operand.dout != nullptr ? operand.step : operand.y.channels),
        start((operand.dout != nullptr ? operand.dout : operand.y.base) + first * step) {}

  int64_t step;
  const T* start;
};

// Whether an operand's values are its units already, in rows that may be read where they lie.
template <typename T>
bool lies_as_units(const Operand<T>& operand) {
  constexpr int64_t kWay = 4096, kSize = sizeof(T);  // bytes of one way of the first cache
  const bool units = kSize == 4 || (block_kernels<T>().pairs && operand.channels % 2 == 0);
  return units && is_plain(operand) && operand.channels * kSize % kWay != 0;
}

// The units by rows of one panel: packed into `to`, or where they lie.
template <typename T>
Factor factor(const Operand<T>& operand, int64_t first, int64_t rows, const PackedWeight<T>& weight,
              void* to);

// sum over rows of a_m b_m^T, fp32 [channels of a, channels of b]; with_ones: one more row, the
// column sums of b. `sums`, where given, [channels of a]: the column sums of a before rounding.
// symmetric: b is a. transposed: sum of b_m a_m^T, [channels of b, channels of a].
struct OuterProduct {
  bool with_ones = false, symmetric = false, transposed = false;
  float* sums = nullptr;
};
// What else is done with a panel of rows while they are at hand: called once for each, with at most
// kRowsOfAPanel, before its part of the product is taken. Gives the first operand's rows, the first
// of them as row 0.
template <typename T>
using PanelStep = std::function<Operand<T>(int64_t first, int64_t rows)>;

// Whether a product of these sizes meets every panel once, and all threads have work in it.
bool meets_panels_once(int64_t m, int64_t n, int64_t rows);

// Groups of rows of an outer product [m, n] that are summed apart: what they leave behind is small
// beside what they read.
int64_t count_groups(int64_t m, int64_t n, int64_t rows);

// The sum of the groups' products [groups, m, ldc] in their order, fp32 [m, n] or its transpose.
at::Tensor sum_of_groups(const at::Tensor& partial, int64_t n, bool transposed = false);

template <typename T>
at::Tensor outer_product(const Operand<T>& a, const Operand<T>& b, int64_t rows,
                         const OuterProduct& form, const at::Tensor& like,
                         const PanelStep<T>& step = {});

}  // namespace fastres
