// The expanding 1x1 convolution of a bottleneck in moment form: its output is never in memory.

#include "block_rows.h"

namespace fastres {
namespace {

using at::Tensor;

// [depth, columns]; packing rounds it.
Tensor weight_matrix(const Tensor& conv_weight) { return conv_weight.flatten(1).t(); }

const float* values_or_null(const std::vector<float>& vector, bool given) {
  return given ? vector.data() : nullptr;
}

}  // namespace

std::tuple<Tensor, Tensor> moments(const Tensor& y_, const OptionalTensor& mean,
                                   const OptionalTensor& invstd, const OptionalTensor& weight,
                                   const OptionalTensor& bias, const Tensor& pivot_,
                                   at::IntArrayRef stride) {
  const PoolScope pool;
  const Tensor y = dense(y_);
  const BranchLanes branch = lanes_or_none(mean, invstd, weight, bias);
  const std::vector<float> pivot = padded_vector(pivot_, y.size(1));
  return for_type(y.scalar_type(), [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Operand<T> d = bn_operand<T>(y, stride, branch, pivot.data());
    Tensor s = empty_vector(y.size(1), y);
    const Tensor gram =
        outer_product<T>(d, d, count_rows(y, d.y),
                         {.symmetric = true, .sums = s.mutable_data_ptr<float>()}, y);
    return {s, gram};
  });
}

namespace {

// The 1x1 convolution that reads a panel of the output while it is in the cache.
template <typename T>
struct Next {
  Next(const Tensor& weight, const Tensor& out, int64_t panels)
      : packed(weight_matrix(weight)),
        columns(weight.size(0)),
        y(empty_dense({out.size(0), columns, out.size(2), out.size(3)}, out)),
        operand(bn_operand<T>(out, {1, 1}, none, nullptr)),
        bytes(unit_bytes<T>() * staggered_row<T>(out.size(1))),
        statistics(columns, panels),
        to(mutable_data<T>(y)) {}

  void run(int64_t p, int64_t first, int64_t rows, char* units) {
    DataPanel<T> panel{};
    panel.gradient = factor(operand, first, rows, packed, units);
    panel.first = first;
    panel.rows = rows;
    panel.columns = columns;
    panel.out = to;
    block_kernels<T>().data(panel);
    statistics.measure(p, to + first * columns, rows);
  }

  const BranchLanes none;
  const PackedWeight<T> packed;
  const int64_t columns;
  Tensor y;
  const Operand<T> operand;
  const int64_t bytes;
  BatchStatistics statistics;
  T* const to;
};

// expand, and what follows it if there is a `next_weight`.
std::tuple<Tensor, Tensor, Tensor, Tensor> expand_with(
    const Tensor& y_, const OptionalTensor& mean, const OptionalTensor& invstd,
    const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& pivot_,
    const Tensor& conv_weight, const Tensor& scale_, const Tensor& shift_,
    const OptionalTensor& shortcut_, const OptionalTensor& s_pivot_,
    const OptionalTensor& s_conv_weight, const OptionalTensor& s_scale_,
    const OptionalTensor& s_shift_, at::IntArrayRef shortcut_stride, bool relu,
    const Tensor& next_weight) {
  const PoolScope pool;
  const Tensor y = dense(y_), shortcut = shortcut_.has_value() ? dense(*shortcut_) : Tensor();
  const int64_t columns = conv_weight.size(0);
  const BranchLanes branch = lanes_or_none(mean, invstd, weight, bias), none;
  const std::vector<float> pivot = padded_vector(pivot_, y.size(1)),
                           scale = padded_vector(scale_, columns),
                           shift = padded_vector(shift_, columns),
                           s_scale = padded_vector(s_scale_, columns),
                           s_shift = padded_vector(s_shift_, columns);
  Tensor out = empty_dense({y.size(0), columns, y.size(2), y.size(3)}, y);
  Tensor next_y, next_mean, next_var;
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const PackedWeight<T> main(weight_matrix(conv_weight));
    const Operand<T> z =
        bn_operand<T>(y, {1, 1}, branch, values_or_null(pivot, pivot_.has_value()));
    PackedWeight<T> projection;
    Operand<T> x;
    std::vector<float> s_pivot;
    Residual kind = Residual::none;
    if (s_conv_weight.has_value()) {
      kind = Residual::product;
      projection = PackedWeight<T>(weight_matrix(*s_conv_weight));
      s_pivot = padded_vector(s_pivot_, shortcut.size(1));
      x = bn_operand<T>(shortcut, shortcut_stride, none,
                        values_or_null(s_pivot, s_pivot_.has_value()));
    } else if (shortcut.defined()) {
      kind = s_scale_.has_value() ? Residual::affine : Residual::identity;
    }
    const int64_t rows = count_rows(y, z.y);
    const int64_t z_bytes = unit_bytes<T>() * staggered_row<T>(z.channels);
    const int64_t x_bytes = unit_bytes<T>() * staggered_row<T>(x.channels);
    const Panels panels(rows, z_bytes + x_bytes, kPanelBytes);
    std::optional<Next<T>> next;
    if (next_weight.defined()) next.emplace(next_weight, out, panels.count());
    Scratch scratch(panels.most() * (z_bytes + x_bytes + (next ? next->bytes : 0)) + 64);
    T* const to = mutable_data<T>(out);
    in_turns(rows == 0 ? 0 : panels.count(), [&](int64_t p) {
      const int64_t first = panels.first(p), count = panels.rows(p);
      char* const units = scratch.mine();
      ExpandPanel<T> panel{};
      panel.main = factor(z, first, count, main, units);
      if (kind == Residual::product) {
        panel.projection = factor(x, first, count, projection, units + panels.most() * z_bytes);
      } else if (kind != Residual::none) {
        panel.shortcut = rows_of<T>(shortcut, shortcut_stride);
      }
      panel.first = first;
      panel.rows = count;
      panel.columns = columns;
      panel.scale = scale.data();
      panel.shift = shift.data();
      panel.s_scale = s_scale.data();
      panel.s_shift = s_shift.data();
      panel.kind = kind;
      panel.relu = relu;
      panel.out = to;
      block_kernels<T>().expand(panel);
      if (next) next->run(p, first, count, units + panels.most() * (z_bytes + x_bytes));
    });
    if (next) {
      next_y = next->y;
      std::tie(next_mean, next_var) = next->statistics.totals(out);
    }
  });
  return {out, next_y, next_mean, next_var};
}

}  // namespace

Tensor expand(const Tensor& y, const OptionalTensor& mean, const OptionalTensor& invstd,
              const OptionalTensor& weight, const OptionalTensor& bias,
              const OptionalTensor& pivot, const Tensor& conv_weight, const Tensor& scale,
              const Tensor& shift, const OptionalTensor& shortcut, const OptionalTensor& s_pivot,
              const OptionalTensor& s_conv_weight, const OptionalTensor& s_scale,
              const OptionalTensor& s_shift, at::IntArrayRef shortcut_stride, bool relu) {
  return std::get<0>(expand_with(y, mean, invstd, weight, bias, pivot, conv_weight, scale, shift,
                                 shortcut, s_pivot, s_conv_weight, s_scale, s_shift,
                                 shortcut_stride, relu, Tensor()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> expand_reduce(
    const Tensor& y, const OptionalTensor& mean, const OptionalTensor& invstd,
    const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& pivot,
    const Tensor& conv_weight, const Tensor& scale, const Tensor& shift,
    const OptionalTensor& shortcut, const OptionalTensor& s_pivot,
    const OptionalTensor& s_conv_weight, const OptionalTensor& s_scale,
    const OptionalTensor& s_shift, at::IntArrayRef shortcut_stride, bool relu,
    const Tensor& next_weight) {
  if (products_serve(y, next_weight, {1, 1}, {0, 0}, 1)) {
    return expand_with(y, mean, invstd, weight, bias, pivot, conv_weight, scale, shift, shortcut,
                       s_pivot, s_conv_weight, s_scale, s_shift, shortcut_stride, relu,
                       next_weight);
  }
  const Tensor out = expand(y, mean, invstd, weight, bias, pivot, conv_weight, scale, shift,
                            shortcut, s_pivot, s_conv_weight, s_scale, s_shift, shortcut_stride,
                            relu);
  auto [next, next_mean, next_var] = conv_stats(out, next_weight, {1, 1}, {0, 0}, {1, 1}, 1, {},
                                                {}, {}, {}, true);
  return {out, next, next_mean, next_var};
}

std::tuple<Tensor, Tensor> expand_backward_weight(
    const Tensor& dout_, const OptionalTensor& out_, const Tensor& y_, const OptionalTensor& mean,
    const OptionalTensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    const Tensor& pivot_, at::IntArrayRef stride) {
  const PoolScope pool;
  const Tensor dout = dense(dout_), y = dense(y_);
  const Tensor out = out_.has_value() ? dense(*out_) : Tensor();
  const BranchLanes branch = lanes_or_none(mean, invstd, weight, bias);
  const std::vector<float> pivot = padded_vector(pivot_, y.size(1));
  return for_type(y.scalar_type(), [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Operand<T> d = bn_operand<T>(y, stride, branch, pivot.data());
    const Tensor both = outer_product<T>(d, masked_operand<T>(dout, out), count_rows(y, d.y),
                                         {.with_ones = true}, y);
    // an operator's outputs may not share memory
    return {both.narrow(0, 0, d.channels), both[d.channels].clone()};
  });
}

std::tuple<Tensor, Tensor, Tensor> expand_backward_data(
    const Tensor& dout_, const OptionalTensor& out_, const Tensor& y_, const OptionalTensor& mean,
    const OptionalTensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& pivot_, const Tensor& gain, const OptionalTensor& mixing,
    const OptionalTensor& constant_, at::IntArrayRef stride) {
  const PoolScope pool;
  const Tensor dout = dense(dout_), y = dense(y_);
  const Tensor out = out_.has_value() ? dense(*out_) : Tensor();
  const int64_t columns = y.size(1);
  const BranchLanes branch = lanes_or_none(mean, invstd, weight, bias);
  const std::vector<float> pivot = padded_vector(pivot_, columns),
                           constant = padded_vector(constant_, columns);
  Tensor dz = empty_dense({dout.size(0), columns, dout.size(2), dout.size(3)}, y);
  ColumnSums sums(mean.has_value() ? columns : 0);
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const PackedWeight<T> from_g(gain);
    const PackedWeight<T> from_z =
        mixing.has_value() ? PackedWeight<T>(*mixing) : PackedWeight<T>();
    const Operand<T> g = masked_operand<T>(dout, out);
    const Operand<T> z =
        bn_operand<T>(y, stride, branch, values_or_null(pivot, pivot_.has_value()));
    const int64_t rows = dout.numel() / std::max<int64_t>(1, dout.size(1));
    const int64_t g_bytes = unit_bytes<T>() * staggered_row<T>(g.channels);
    const int64_t z_bytes = mixing.has_value() ? unit_bytes<T>() * staggered_row<T>(columns) : 0;
    const Panels panels(rows, g_bytes + z_bytes, kPanelBytes);
    Scratch scratch(panels.most() * (g_bytes + z_bytes) + 64);
    sums.reserve(panels.count());
    T* const to = mutable_data<T>(dz);
    in_turns(rows == 0 ? 0 : panels.count(), [&](int64_t p) {
      const int64_t first = panels.first(p), count = panels.rows(p);
      char* const units = scratch.mine();
      DataPanel<T> panel{};
      panel.gradient = factor(g, first, count, from_g, units);
      if (mixing.has_value()) {
        panel.mixing = factor(z, first, count, from_z, units + panels.most() * g_bytes);
      }
      panel.first = first;
      panel.rows = count;
      panel.columns = columns;
      panel.constant = values_or_null(constant, constant_.has_value());
      panel.y = z.y.base;
      panel.branch = vectors_or_null(branch);
      panel.sum_g = sums.first(p);
      panel.sum_gd = sums.second(p);
      panel.out = to;
      block_kernels<T>().data(panel);
    });
  });
  auto [sum_g, sum_gx] = sums.totals(branch.invstd, y);
  return {dz, sum_g, sum_gx};
}

}  // namespace fastres
