// The operators; their signatures follow fastres/backends/ops.py.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

#include "activation.h"
#include "pool.h"

// The parameters bn_backward and conv_bn_backward share, and those of them a JoinBackward takes.
#define FASTRES_BACKWARD_PARAMETERS                                                             \
  const at::Tensor &dout, const OptionalTensor &out, const at::Tensor &y,                       \
      const at::Tensor &mean, const at::Tensor &invstd, const OptionalTensor &weight,           \
      const OptionalTensor &bias, const OptionalTensor &mean_g, const OptionalTensor &mean_gx,  \
      const OptionalTensor &shortcut, const OptionalTensor &s_mean,                             \
      const OptionalTensor &s_invstd, const OptionalTensor &s_weight,                           \
      const OptionalTensor &mean_gx_s, at::IntArrayRef shortcut_size, int64_t shortcut_stride,  \
      bool relu
#define FASTRES_JOIN_ARGUMENTS                                                              \
  out, y, mean, invstd, weight, bias, mean_g, mean_gx, shortcut, s_mean, s_invstd, s_weight, \
      mean_gx_s, shortcut_size, shortcut_stride, relu

namespace fastres {

// Activations of float32 or bfloat16 enter oneDNN as they are, also under autocast.
struct ConvolutionScope {
  PoolScope pool;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// dw in the dtype and strides of `weight`.
at::Tensor like_weight(const at::Tensor& dw, const at::Tensor& weight);

std::tuple<at::Tensor, at::Tensor> bn_stats(const at::Tensor& y);
at::Tensor bn_apply(const at::Tensor& y, const at::Tensor& mean, const at::Tensor& invstd,
                    const OptionalTensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& shortcut, const OptionalTensor& s_mean,
                    const OptionalTensor& s_invstd, const OptionalTensor& s_weight,
                    const OptionalTensor& s_bias, int64_t shortcut_stride, bool relu);
std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_backward_reduce(
    const at::Tensor& dout, const OptionalTensor& out, const at::Tensor& y, const at::Tensor& mean,
    const at::Tensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& shortcut, const OptionalTensor& s_mean, const OptionalTensor& s_invstd,
    bool relu);
std::tuple<at::Tensor, at::Tensor> bn_backward(FASTRES_BACKWARD_PARAMETERS);
std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_stats(
    const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, const OptionalTensor& pro_mean,
    const OptionalTensor& pro_invstd, const OptionalTensor& pro_weight,
    const OptionalTensor& pro_bias, bool stats);
std::tuple<at::Tensor, at::Tensor> conv_backward(const at::Tensor& dy, const at::Tensor& x,
                                                 const at::Tensor& weight, at::IntArrayRef stride,
                                                 at::IntArrayRef padding, at::IntArrayRef dilation,
                                                 int64_t groups, bool need_dx, bool need_dw);
std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_bn_backward(
    FASTRES_BACKWARD_PARAMETERS, const at::Tensor& x, const at::Tensor& conv_weight,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    bool need_dx, bool need_dw);
int64_t set_slice_bytes(int64_t bytes);
std::tuple<at::Tensor, at::Tensor> max_pool(const at::Tensor& x, at::IntArrayRef kernel_size,
                                            at::IntArrayRef stride, at::IntArrayRef padding);
at::Tensor max_pool_backward(const at::Tensor& dout, const at::Tensor& index, at::IntArrayRef size,
                             at::IntArrayRef kernel_size, at::IntArrayRef stride,
                             at::IntArrayRef padding);
at::Tensor pad_shortcut(const at::Tensor& x, int64_t out_channels, int64_t stride);
at::Tensor pad_shortcut_backward(const at::Tensor& dout, at::IntArrayRef size, int64_t stride);

std::tuple<at::Tensor, at::Tensor> moments(
    const at::Tensor& y, const OptionalTensor& mean, const OptionalTensor& invstd,
    const OptionalTensor& weight, const OptionalTensor& bias, const at::Tensor& pivot,
    at::IntArrayRef stride);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
moment_statistics(const at::Tensor& y, const at::Tensor& conv_weight, const at::Tensor& s,
                  const at::Tensor& gram, const at::Tensor& pivot, const OptionalTensor& weight,
                  const OptionalTensor& bias, int64_t rows, double eps);
at::Tensor expand(
    const at::Tensor& y, const OptionalTensor& mean, const OptionalTensor& invstd,
    const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& pivot,
    const at::Tensor& conv_weight, const at::Tensor& scale, const at::Tensor& shift,
    const OptionalTensor& shortcut, const OptionalTensor& s_pivot,
    const OptionalTensor& s_conv_weight, const OptionalTensor& s_scale,
    const OptionalTensor& s_shift, at::IntArrayRef shortcut_stride, bool relu);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> expand_reduce(
    const at::Tensor& y, const OptionalTensor& mean, const OptionalTensor& invstd,
    const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& pivot,
    const at::Tensor& conv_weight, const at::Tensor& scale, const at::Tensor& shift,
    const OptionalTensor& shortcut, const OptionalTensor& s_pivot,
    const OptionalTensor& s_conv_weight, const OptionalTensor& s_scale,
    const OptionalTensor& s_shift, at::IntArrayRef shortcut_stride, bool relu,
    const at::Tensor& next_weight);
std::tuple<at::Tensor, at::Tensor> expand_backward_weight(
    const at::Tensor& dout, const OptionalTensor& out, const at::Tensor& y,
    const OptionalTensor& mean, const OptionalTensor& invstd, const OptionalTensor& weight,
    const OptionalTensor& bias, const at::Tensor& pivot, at::IntArrayRef stride);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> moment_gradients(
    const at::Tensor& y, const at::Tensor& conv_weight, const at::Tensor& product,
    const at::Tensor& sum_g, const OptionalTensor& weight, const at::Tensor& mean,
    const at::Tensor& invstd, const at::Tensor& pivot, const OptionalTensor& offset,
    const OptionalTensor& shift);
std::tuple<at::Tensor, at::Tensor, at::Tensor> moment_batch_gradients(
    const at::Tensor& y, const at::Tensor& conv_weight, const at::Tensor& gain,
    const at::Tensor& dmatrix, const at::Tensor& all_g, const at::Tensor& all_gy,
    const OptionalTensor& weight, const at::Tensor& invstd, const at::Tensor& pivot,
    const at::Tensor& offset, const at::Tensor& covariance, const OptionalTensor& shift,
    const OptionalTensor& count, int64_t rows);
std::tuple<at::Tensor, at::Tensor, at::Tensor> expand_backward_data(
    const at::Tensor& dout, const OptionalTensor& out, const at::Tensor& y,
    const OptionalTensor& mean, const OptionalTensor& invstd, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& pivot, const at::Tensor& gain,
    const OptionalTensor& mixing, const OptionalTensor& constant, at::IntArrayRef stride);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> chain_backward(
    const at::Tensor& dout, const OptionalTensor& out, const at::Tensor& y, const at::Tensor& mean,
    const at::Tensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& mean_g, const OptionalTensor& mean_gx, bool relu, const at::Tensor& x,
    const at::Tensor& conv_weight, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, const OptionalTensor& pro_mean,
    const OptionalTensor& pro_invstd, const OptionalTensor& pro_weight,
    const OptionalTensor& pro_bias, const OptionalTensor& residual,
    const OptionalTensor& residual_mask, at::IntArrayRef residual_stride, bool mask_by_x,
    bool need_dx, bool need_dw);
std::tuple<at::Tensor, at::Tensor> bn_max_pool(
    const at::Tensor& y, const at::Tensor& mean, const at::Tensor& invstd,
    const OptionalTensor& weight, const OptionalTensor& bias, at::IntArrayRef kernel_size,
    at::IntArrayRef stride, at::IntArrayRef padding);
std::tuple<at::Tensor, at::Tensor> bn_max_pool_backward_reduce(
    const at::Tensor& dout, const at::Tensor& index, const at::Tensor& y, const at::Tensor& mean,
    const at::Tensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding);
at::Tensor bn_max_pool_backward(
    const at::Tensor& dout, const at::Tensor& index, const at::Tensor& y, const at::Tensor& mean,
    const at::Tensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& mean_g, const OptionalTensor& mean_gx, at::IntArrayRef kernel_size,
    at::IntArrayRef stride, at::IntArrayRef padding);

}  // namespace fastres
