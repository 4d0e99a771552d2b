// One link of a block backwards: the BN after a convolution and the convolution itself.

#include "block_rows.h"

namespace fastres {
namespace {

using at::Tensor;

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
  in_turns(rows == 0 ? 0 : panels.count(),
           [&](int64_t p) { fn(p, panels.first(p), panels.rows(p)); });
}

// What surrounds the convolution of a link; rows are those of x.
struct Link {
  Tensor x, residual, residual_mask;
  at::IntArrayRef residual_stride;
  bool mask_by_x;
  std::optional<BranchLanes> prologue;

  int64_t columns() const { return x.size(1); }
  int64_t rows() const { return x.numel() / std::max<int64_t>(1, columns()); }
};

// dz where the prologue's ReLU let through, in place, with its sums.
void mask_with_sums(const Link& link, Tensor& dx, ColumnSums& sums) {
  const Panels panels(link.rows(), dx.element_size() * link.columns() * 2, kPanelBytes);
  sums.reserve(panels.count());
  for_type(dx.scalar_type(), [&](auto type) {
    using T = decltype(type);
    T* const to = mutable_data<T>(dx);
    each_panel(panels, link.rows(), [&](int64_t p, int64_t first, int64_t count) {
      DataPanel<T> panel{};
      panel.first = first;
      panel.rows = count;
      panel.columns = link.columns();
      panel.y = data<T>(link.x);
      panel.branch = link.prologue->vectors();
      panel.sum_g = sums.first(p);
      panel.sum_gd = sums.second(p);
      panel.out = to;
      block_kernels<T>().mask_with_sums(panel);
    });
  });
}

// What the shortcut passes back and the mask of x, in place.
void finish_input(const Link& link, Tensor& dx) {
  if (!link.residual.defined() && !link.mask_by_x) return;
  const Panels panels(link.rows(), dx.element_size() * link.columns() * 4, kPanelBytes);
  for_type(dx.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const InputPanel<T> whole = input_panel<T>(link.x, link.residual, link.residual_mask,
                                               link.residual_stride, link.mask_by_x, dx);
    each_panel(panels, link.rows(), [&](int64_t, int64_t first, int64_t count) {
      InputPanel<T> panel = whole;
      panel.first = first;
      panel.rows = count;
      block_kernels<T>().finish_input(panel);
    });
  });
}

// dx of a 1x1 convolution: dy times its weight, with everything that comes after.
template <typename T>
Tensor pointwise_dx(const Link& link, const Operand<T>& dy, int64_t rows, const Tensor& like,
                    const Tensor& conv_weight, bool strided, ColumnSums& sums) {
  Tensor dx = empty_dense({like.size(0), link.columns(), like.size(2), like.size(3)}, link.x);
  const PackedWeight<T> packed(conv_weight.flatten(1));
  const int64_t bytes = unit_bytes<T>() * staggered_row<T>(dy.channels);
  const Panels panels(rows, bytes, kPanelBytes);
  Scratch scratch(panels.most() * bytes);
  if (link.prologue.has_value()) {
    sums.reserve(panels.count());
    T* const to = mutable_data<T>(dx);
    each_panel(panels, rows, [&](int64_t p, int64_t first, int64_t count) {
      DataPanel<T> panel{};
      panel.gradient = factor(dy, first, count, packed, scratch.mine());
      panel.first = first;
      panel.rows = count;
      panel.columns = link.columns();
      panel.y = data<T>(link.x);
      panel.branch = link.prologue->vectors();
      panel.sum_g = sums.first(p);
      panel.sum_gd = sums.second(p);
      panel.out = to;
      block_kernels<T>().data(panel);
    });
    return dx;
  }
  InputPanel<T> whole =
      strided ? input_panel<T>(link.x, Tensor(), Tensor(), {1, 1}, false, dx)
              : input_panel<T>(link.x, link.residual, link.residual_mask, link.residual_stride,
                               link.mask_by_x, dx);
  each_panel(panels, rows, [&](int64_t, int64_t first, int64_t count) {
    InputPanel<T> panel = whole;
    panel.main = factor(dy, first, count, packed, scratch.mine());
    panel.first = first;
    panel.rows = count;
    block_kernels<T>().input(panel);
  });
  return dx;
}

// dx and dw of a 1x1 convolution without a prologue, panel by panel: dy is made and x is read once
// for both. Made apart they are the same, bit for bit.
template <typename T>
std::tuple<Tensor, Tensor> pointwise_both(const Link& link, const Operand<T>& dy,
                                          const Operand<T>& input, int64_t rows,
                                          const Tensor& conv_weight) {
  Tensor dx = empty_dense(link.x.sizes(), link.x);
  const PackedWeight<T> packed(conv_weight.flatten(1));
  Scratch scratch(kRowsOfAPanel * unit_bytes<T>() * staggered_row<T>(dy.channels));
  const InputPanel<T> whole = input_panel<T>(link.x, link.residual, link.residual_mask,
                                             link.residual_stride, link.mask_by_x, dx);
  const auto step = [&](int64_t first, int64_t count) {
    InputPanel<T> panel = whole;
    panel.main = factor(dy, first, count, packed, scratch.mine());
    panel.first = first;
    panel.rows = count;
    block_kernels<T>().input(panel);
    Operand<T> made;
    made.dout = static_cast<const T*>(panel.main.a);
    made.channels = dy.channels;
    made.step = panel.main.lda;
    return made;
  };
  return {dx, outer_product<T>(dy, input, rows, {}, link.x, step)};
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
  const Tensor dout = dense(dout_), y = dense(y_);
  const Tensor out = out_.has_value() ? dense(*out_) : Tensor();
  const bool prologue = pro_mean.has_value();
  Link link{dense(x_), {}, {}, residual_stride, mask_by_x && !prologue, {}};
  const Tensor& x = link.x;
  if (prologue) {
    link.prologue.emplace(*pro_mean, *pro_invstd, pro_weight, pro_bias);
  } else if (residual_.has_value()) {
    link.residual = dense(*residual_);
    link.residual_mask = residual_mask_.has_value() ? dense(*residual_mask_) : Tensor();
  }
  const int64_t columns = link.columns();
  ColumnSums sums(prologue ? columns : 0);
  const bool strided = stride[0] != 1 || stride[1] != 1;
  const bool pointwise = groups == 1 && conv_weight.size(2) == 1 && conv_weight.size(3) == 1 &&
                         stride[0] == stride[1] && !(strided && prologue) && padding[0] == 0 &&
                         padding[1] == 0 && x.numel() > 0;
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
      const int64_t rows = count_rows(y, dy.y);
      const BranchLanes none;
      const Operand<T> input = bn_operand<T>(x, stride, prologue ? *link.prologue : none, nullptr);
      // units by rows must be values that can be packed again
      const bool packs_again = unit_bytes<T>() == static_cast<int64_t>(sizeof(T));
      const bool both = need_dx && need_dw && !prologue && !strided && packs_again &&
                        dy.channels <= input.channels &&
                        meets_panels_once(dy.channels, input.channels, rows);
      if (both) {
        std::tie(dx, dw) = pointwise_both<T>(link, dy, input, rows, conv_weight);
        dw = like_weight(dw.view({dw.size(0), dw.size(1), 1, 1}), conv_weight);
        return;
      }
      if (need_dw) {
        // the first operand is made again for every block of the second's columns
        dw = dy.channels <= input.channels
                 ? outer_product<T>(dy, input, rows, {}, x)
                 : outer_product<T>(input, dy, rows, {.transposed = true}, x);
        dw = like_weight(dw.view({dw.size(0), dw.size(1), 1, 1}), conv_weight);
      }
      if (need_dx) {
        dx = pointwise_dx<T>(link, dy, rows, dout, conv_weight, strided, sums);
      }
    });
    if (need_dx && strided) {
      dx = pad_shortcut_backward(dx, x.sizes(), stride[0]);
      finish_input(link, dx);
    }
  } else {
    auto [dy, none] = bn_backward(dout, out_, y, mean, invstd, weight, bias, mean_g, mean_gx, {},
                                  {}, {}, {}, {}, {}, 1, relu || out.defined());
    const Tensor input = prologue ? bn_apply(x, *pro_mean, *pro_invstd, pro_weight, pro_bias, {},
                                             {}, {}, {}, {}, 1, true)
                                  : x;
    std::tie(dx, dw) = conv_backward(dy, input, conv_weight, stride, padding, dilation, groups,
                                     need_dx, need_dw);
    if (need_dx && prologue) {
      mask_with_sums(link, dx, sums);
    } else if (need_dx) {
      finish_input(link, dx);
    }
  }
  auto [sum_g, sum_gx] =
      sums.totals(prologue ? link.prologue->invstd : std::vector<float>(), x);
  return {need_dx ? dx : nothing(x), need_dw ? dw : nothing(conv_weight), sum_g, sum_gx};
}

}  // namespace fastres
