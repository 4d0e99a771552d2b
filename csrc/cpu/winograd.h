// 3x3 convolutions at stride 1 in fp32 with fewer multiplications, see winograd_kernels.h.
//
// Sums are taken in another order than in a direct convolution, with errors of the same size; a NaN
// or an infinity makes all four pixels of an output tile NaN.
#pragma once

#include "operators.h"

namespace fastres {

// Whether these serve the convolution of x [N, C, H, W] with this weight, and gain by it.
bool winograd_serves(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// y = convolution of x, dense channels_last, with weight [K, C, 3, 3] and padding 1.
at::Tensor winograd_forward(const at::Tensor& x, const at::Tensor& weight);

// The weight [K, C, 3, 3] as the next one takes it.
at::Tensor winograd_filters(const at::Tensor& weight);

// relu(convolution + bias [K] + shortcut) with such filters; x and the shortcut, which may be
// undefined, dense channels_last.
at::Tensor winograd_finished(const at::Tensor& x, const at::Tensor& filters,
                             const at::Tensor& bias, const at::Tensor& shortcut, bool relu);

// The gradient of x.
at::Tensor winograd_backward_data(const at::Tensor& dy, const at::Tensor& weight);

// The gradient of the weight [K, C, 3, 3], contiguous.
at::Tensor winograd_backward_weight(const at::Tensor& dy, const at::Tensor& x);

}  // namespace fastres
