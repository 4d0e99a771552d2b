// Convolutions: products of our own where those are faster, else oneDNN's, with our passes taken while
// their data is in the cache.
//
// The backward pass of a large batch is walked in slices of images: the gradient of a slice's
// output lives in a small buffer, used up by the convolution's gradients before the next begins.

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>

#include <atomic>

#include "block_rows.h"
#include "lines.h"
#include "pool.h"
#include "winograd.h"

namespace fastres {
namespace {

// Bytes of input and output that a slice of the backward pass may bring into the cache.
std::atomic<int64_t> slice_bytes{int64_t{128} << 20};

struct Geometry {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
};

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const Geometry& g) {
  if (winograd_serves(x, weight, g.stride, g.padding, g.dilation, g.groups)) {
    return winograd_forward(x, weight);
  }
  return at::convolution(x, weight, {}, g.stride, g.padding, g.dilation, false, {0, 0}, g.groups);
}

// Whether the weight's gradient is taken as a product of our own: where oneDNN's is far from the
// processor's rate, at strides, dilations and for large weights over few pixels, or (bf16) wrong.
bool patches_serve(const at::Tensor& dy, const at::Tensor& weight, const Geometry& g) {
  const int64_t in = weight.size(1), pixels = dy.size(0) * dy.size(2) * dy.size(3);
  const auto beyond = [](at::IntArrayRef pair) { return pair[0] > 1 || pair[1] > 1; };
  return g.groups == 1 && in >= 32 && dy.numel() > 0 && weight.size(2) * weight.size(3) > 1 &&
         (beyond(g.stride) || beyond(g.dilation) || pixels < 16 * in);
}

// A 1x1 convolution as a product, with the statistics of its output.
std::tuple<at::Tensor, at::Tensor, at::Tensor> pointwise(const at::Tensor& x,
                                                         const at::Tensor& weight,
                                                         at::IntArrayRef stride,
                                                         const BranchLanes& prologue, bool stats) {
  return for_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Operand<T> z = bn_operand<T>(x, stride, prologue, nullptr);
    const PackedWeight<T> packed(weight.flatten(1).t());
    const int64_t columns = weight.size(0), rows = count_rows(x, z.y);
    at::Tensor y = empty_dense({x.size(0), columns, z.y.height, z.y.width}, x);
    const int64_t bytes = unit_bytes<T>() * staggered_row<T>(z.channels);
    const Panels panels(rows, bytes, kPanelBytes);
    Scratch scratch(panels.most() * bytes);
    BatchStatistics statistics(stats ? columns : 0, panels.count());
    T* const to = mutable_data<T>(y);
    in_turns(panels.count(), [&](int64_t p) {
      DataPanel<T> panel{};
      panel.first = panels.first(p);
      panel.rows = panels.rows(p);
      panel.columns = columns;
      panel.gradient = factor(z, panel.first, panel.rows, packed, scratch.mine());
      panel.out = to;
      block_kernels<T>().data(panel);
      if (stats) statistics.measure(p, to + panel.first * columns, panel.rows);
    });
    if (!stats) return std::make_tuple(y, empty_vector(0, x), empty_vector(0, x));
    auto [mean, var] = statistics.totals(x);
    return std::make_tuple(y, mean, var);
  });
}

// dy^T times the patches of x, in fp32: the gradient of a channels_last weight.
at::Tensor patches_backward_weight(const at::Tensor& dy, const at::Tensor& x,
                                   const at::Tensor& weight, const Geometry& g) {
  const at::Tensor zeros = at::zeros({x.size(1)}, x.options());
  const at::IntArrayRef kernel = weight.sizes().slice(2);
  const int64_t rows = dy.size(0) * dy.size(2) * dy.size(3);
  return for_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Operand<T> patches =
        patches_operand<T>(x, dy, kernel, g.stride, g.padding, g.dilation, zeros);
    const at::Tensor dw =
        outer_product<T>(masked_operand<T>(dy, at::Tensor()), patches, rows, {}, x);
    return dw.view({dy.size(1), kernel[0], kernel[1], x.size(1)}).permute({0, 3, 1, 2});
  });
}

std::tuple<at::Tensor, at::Tensor> convolve_backward(const at::Tensor& dy, const at::Tensor& x,
                                                     const at::Tensor& weight, const Geometry& g,
                                                     bool need_dx, bool need_dw) {
  if (winograd_serves(x, weight, g.stride, g.padding, g.dilation, g.groups)) {
    return {need_dx ? winograd_backward_data(dy, weight) : at::Tensor(),
            need_dw ? winograd_backward_weight(dy, x) : at::Tensor()};
  }
  const bool lines = lines_serve(x, weight, g.stride, g.padding, g.dilation, g.groups);
  if (need_dw && (lines || patches_serve(dy, weight, g))) {
    const at::Tensor dw =
        lines ? lines_backward_weight(dy, x) : patches_backward_weight(dy, x, weight, g);
    return {need_dx ? std::get<0>(convolve_backward(dy, x, weight, g, true, false)) : at::Tensor(),
            dw};
  }
  // oneDNN hands back memory it never wrote as part of a bf16 weight's gradient where one stride
  // passes over all columns of x, and where the kernel is dilated.
  const bool unwritten = weight.size(3) > 1 && (x.size(3) < g.stride[1] || g.dilation[1] > 1);
  if (need_dw && x.scalar_type() == at::kBFloat16 && unwritten) {
    auto [dx, dw] = convolve_backward(dy.to(at::kFloat), x.to(at::kFloat), weight.to(at::kFloat),
                                      g, need_dx, need_dw);
    return {need_dx ? dx.to(at::kBFloat16) : dx, dw};
  }
  auto [dx, dw, db] =
      at::convolution_backward(dy, x, weight, at::OptionalIntArrayRef(), g.stride, g.padding,
                               g.dilation, false, {0, 0}, g.groups, {need_dx, need_dw, false});
  return {dx, dw};
}

// Images a slice. A batch of up to three slices is taken whole: smaller convolutions are slower
// ones. Measured at batch 16, ResNet-50 fp32: a step of 1153 ms whole, 1215 ms in slices of 16 MB.
int64_t images_per_slice(const at::Tensor& x, const at::Tensor& y) {
  const int64_t images = x.size(0), budget = slice_bytes.load();
  const int64_t bytes = static_cast<int64_t>(x.nbytes() + y.nbytes());
  if (images < 2 || bytes <= 3 * budget) {
    return std::max<int64_t>(1, images);
  }
  return std::clamp<int64_t>(budget * images / bytes, 1, images);
}

}  // namespace

// The weight may be kept in a wider dtype than the activations; its gradient takes its form. What
// differs in the strides of extents of one only, as layouts of a 1x1 weight do, is not copied.
at::Tensor like_weight(const at::Tensor& dw, const at::Tensor& weight) {
  bool same = dw.scalar_type() == weight.scalar_type();
  for (int64_t i = 0; i < dw.dim(); ++i) {
    same = same && (dw.size(i) == 1 || dw.stride(i) == weight.stride(i));
  }
  return same ? dw.as_strided(weight.sizes(), weight.strides())
              : at::empty_like(weight).copy_(dw);
}

int64_t set_slice_bytes(int64_t bytes) { return slice_bytes.exchange(bytes); }

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_stats(
    const at::Tensor& x_, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    const OptionalTensor& pro_mean, const OptionalTensor& pro_invstd,
    const OptionalTensor& pro_weight, const OptionalTensor& pro_bias, bool stats) {
  const ConvolutionScope scope;
  const Geometry geometry{stride, padding, dilation, groups};
  at::Tensor x = dense(x_);
  if (products_serve(x, weight, stride, padding, groups)) {
    return pointwise(x, weight, stride, lanes_or_none(pro_mean, pro_invstd, pro_weight, pro_bias),
                     stats);
  }
  if (pro_mean.has_value()) {
    x = bn_apply(x, *pro_mean, *pro_invstd, pro_weight, pro_bias, {}, {}, {}, {}, {}, 1, true);
  }
  const at::Tensor y = dense(convolve(x, weight.to(x.scalar_type()), geometry));
  if (!stats) {
    return {y, empty_vector(0, x), empty_vector(0, x)};
  }
  auto [mean, var] = bn_stats(y);
  return {y, mean, var};
}

std::tuple<at::Tensor, at::Tensor> conv_backward(const at::Tensor& dy, const at::Tensor& x,
                                                 const at::Tensor& weight, at::IntArrayRef stride,
                                                 at::IntArrayRef padding, at::IntArrayRef dilation,
                                                 int64_t groups, bool need_dx, bool need_dw) {
  const ConvolutionScope scope;
  auto [dx, dw] = convolve_backward(dense(dy), dense(x), weight.to(x.scalar_type()),
                                    {stride, padding, dilation, groups}, need_dx, need_dw);
  return {need_dx ? dense(dx) : nothing(x), need_dw ? like_weight(dw, weight) : nothing(weight)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_bn_backward(
    FASTRES_BACKWARD_PARAMETERS, const at::Tensor& x_, const at::Tensor& conv_weight,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    bool need_dx, bool need_dw) {
  const ConvolutionScope scope;
  const Geometry geometry{stride, padding, dilation, groups};
  const at::Tensor gradient = dense(dout), x = dense(x_), weight_as_x = conv_weight.to(x.scalar_type());
  const JoinBackward join(FASTRES_JOIN_ARGUMENTS);
  at::Tensor dshortcut = join.empty_shortcut_gradient(), dx, dw;
  const int64_t images = x.size(0), step = images_per_slice(x, y);
  if (images == 0) {
    return {need_dx ? empty_dense(x.sizes(), x) : nothing(x),
            need_dw ? at::zeros_like(conv_weight) : nothing(conv_weight), dshortcut};
  }
  for (int64_t first = 0; first < images; first += step) {
    const int64_t count = std::min(step, images - first);
    at::Tensor dy = empty_dense({count, y.size(1), y.size(2), y.size(3)}, y);
    join.run(gradient, first, dy, dshortcut);
    auto [part_dx, part_dw] = convolve_backward(dy, x.narrow(0, first, count), weight_as_x,
                                                geometry, need_dx, need_dw);
    if (need_dx && count == images) {
      dx = dense(part_dx);
    } else if (need_dx) {
      if (!dx.defined()) {
        dx = empty_dense(x.sizes(), x);
      }
      dx.narrow(0, first, count).copy_(part_dx);
    }
    if (need_dw && count == images) {
      dw = part_dw;
    } else if (need_dw) {  // in bf16 every addition would lose bits
      dw = dw.defined() ? dw.add_(part_dw) : part_dw.to(at::kFloat);
    }
  }
  return {need_dx ? dx : nothing(x), need_dw ? like_weight(dw, conv_weight) : nothing(conv_weight),
          dshortcut};
}

}  // namespace fastres
