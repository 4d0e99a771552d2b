// One link of a block backwards: the BN after a convolution and the convolution itself.

#include "../common/pad_shortcut_index.h"
#include "block_rows.h"

namespace fastres {
namespace {

using at::Tensor;

// Bytes of a panel that stay in the second cache.
constexpr int64_t kPanelBytes = int64_t{400} << 10;

template <typename T>
InputPanel<T> input_panel(const Tensor& x, const Tensor& residual, const Tensor& residual_mask,
                          at::IntArrayRef residual_stride, bool mask_by_x, Tensor& dx) {
  InputPanel<T> panel{};
  panel.columns = x.size(1);
  panel.x = mask_by_x ? data<T>(x) : nullptr;
  if (residual.defined()) {
    panel.residual = data<T>(residual);
    panel.residual_mask = residual_mask.defined() ? data<T>(residual_mask) : nullptr;
    panel.residual_channels = residual.size(1);
    panel.height_out = residual.size(2);
    panel.width_out = residual.size(3);
  }
  panel.height = x.size(2);
  panel.width = x.size(3);
  panel.stride_h = residual_stride[0];
  panel.stride_w = residual_stride[1];
  panel.out = mutable_data<T>(dx);
  return panel;
}

// Panels of `rows`, in parallel: fn(panel number, first row, rows).
template <typename F>
void each_panel(const Panels& panels, int64_t rows, F fn) {
  at::parallel_for(0, rows == 0 ? 0 : panels.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) fn(p, panels.first(p), panels.rows(p));
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> chain_backward(
    const Tensor& dout_, const OptionalTensor& out_, const Tensor& y_, const Tensor& mean,
    const Tensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& mean_g, const OptionalTensor& mean_gx, bool relu, const Tensor& x_,
    const Tensor& conv_weight, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, const OptionalTensor& pro_mean,
    const OptionalTensor& pro_invstd, const OptionalTensor& pro_weight,
    const OptionalTensor& pro_bias, const OptionalTensor& residual_,
    const OptionalTensor& residual_mask_, at::IntArrayRef residual_stride, bool mask_by_x,
    bool need_dx, bool need_dw) {
  const ConvolutionScope scope;
  const Tensor x = dense(x_), dout = dense(dout_), y = dense(y_);
  const bool prologue = pro_mean.has_value();
  const Tensor out = out_.has_value() ? dense(*out_) : Tensor();
  const Tensor residual = residual_.has_value() && !prologue ? dense(*residual_) : Tensor();
  const Tensor residual_mask = residual_mask_.has_value() ? dense(*residual_mask_) : Tensor();
  const int64_t columns = x.size(1), rows = x.numel() / std::max<int64_t>(1, columns);
  ColumnSums sums(prologue ? columns : 0);
  const bool pointwise = !prologue && groups == 1 && conv_weight.size(2) == 1 &&
                         conv_weight.size(3) == 1 && stride[0] == 1 && stride[1] == 1 &&
                         padding[0] == 0 && padding[1] == 0 && rows > 0;
  Tensor dx, dw;
  if (pointwise) {
    const BranchLanes branch(mean, invstd, weight, bias);
    const GradientLanes gradient(branch, mean_g, mean_gx);
    for_type(x.scalar_type(), [&](auto type) {
      using T = decltype(type);
      Operand<T> dy = masked_operand<T>(dout, out);
      dy.y = rows_of<T>(y, {1, 1});
      dy.branch = branch.vectors();
      dy.gradient = gradient.vectors();
      dy.relu = relu;
      const Operand<T> input = bn_operand<T>(x, {1, 1}, BranchLanes(), nullptr);
      if (need_dw) dw = outer_product<T>(dy, input, rows, false, false, nullptr, x);
      if (!need_dx) return;
      dx = empty_dense(x.sizes(), x);
      const PackedWeight<T> packed(conv_weight.to(x.scalar_type()).flatten(1));
      const int64_t bytes = unit_bytes<T>() * whole_pairs(dy.channels);
      const Panels panels(rows, bytes, kPanelBytes);
      Scratch scratch(panels.most() * bytes);
      const InputPanel<T> whole =
          input_panel<T>(x, residual, residual_mask, residual_stride, mask_by_x, dx);
      each_panel(panels, rows, [&](int64_t, int64_t first, int64_t count) {
        InputPanel<T> panel = whole;
        panel.main = factor(dy, first, count, packed, scratch.mine());
        panel.first = first;
        panel.rows = count;
        block_kernels<T>().input(panel);
      });
    });
    if (need_dw) dw = like_weight(dw.view({dw.size(0), dw.size(1), 1, 1}), conv_weight);
  } else {
    auto [dy, none] = bn_backward(dout, out_, y, mean, invstd, weight, bias, mean_g, mean_gx, {},
                                  {}, {}, {}, {}, {}, 1, relu || out.defined());
    const Tensor input = prologue ? bn_apply(x, *pro_mean, *pro_invstd, pro_weight, pro_bias, {},
                                             {}, {}, {}, {}, 1, true)
                                  : x;
    std::tie(dx, dw) = conv_backward(dy, input, conv_weight, stride, padding, dilation, groups,
                                     need_dx, need_dw);
    if (need_dx && prologue) {
      const BranchLanes pro(*pro_mean, *pro_invstd, pro_weight, pro_bias);
      const Panels panels(rows, x.element_size() * columns * 2, kPanelBytes);
      sums.reserve(panels.count());
      for_type(x.scalar_type(), [&](auto type) {
        using T = decltype(type);
        each_panel(panels, rows, [&](int64_t p, int64_t first, int64_t count) {
          DataPanel<T> panel{};
          panel.first = first;
          panel.rows = count;
          panel.columns = columns;
          panel.y = data<T>(x);
          panel.branch = pro.vectors();
          panel.sum_g = sums.first(p);
          panel.sum_gd = sums.second(p);
          panel.out = mutable_data<T>(dx);
          block_kernels<T>().mask_with_sums(panel);
        });
      });
      auto [sum_g, sum_gx] = sums.totals(pro.invstd, x);
      return {dx, need_dw ? dw : nothing(conv_weight), sum_g, sum_gx};
    }
    if (need_dx && (residual.defined() || mask_by_x)) {
      const Panels panels(rows, x.element_size() * columns * 4, kPanelBytes);
      for_type(x.scalar_type(), [&](auto type) {
        using T = decltype(type);
        const InputPanel<T> whole =
            input_panel<T>(x, residual, residual_mask, residual_stride, mask_by_x, dx);
        each_panel(panels, rows, [&](int64_t, int64_t first, int64_t count) {
          InputPanel<T> panel = whole;
          panel.first = first;
          panel.rows = count;
          block_kernels<T>().finish_input(panel);
        });
      });
    }
  }
  auto [sum_g, sum_gx] = sums.totals({}, x);
  return {need_dx ? dx : nothing(x), need_dw ? dw : nothing(conv_weight), sum_g, sum_gx};
}

}  // namespace fastres
