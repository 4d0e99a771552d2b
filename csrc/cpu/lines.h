// The weight gradient of a 3x3 convolution at stride 1, without putting patches together.
//
// Images are taken line after line as one row of pixels with a zero between two lines: what a place
// of the kernel meets then lies equally far from every pixel. Pairs of pixels begin at even ones, so
// two copies of the input serve all nine places, the second moved by one pixel. Behind the zeros lie
// products by zero: a NaN or an infinity at an edge of x makes NaN of places that do not meet it.
#pragma once

#include "operators.h"

namespace fastres {

// Whether it serves the convolution of x [N, C, H, W] with this weight, and gains by it.
bool lines_serve(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                 at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// The gradient of the weight in fp32, channels_last [K, C, 3, 3]; dy and x dense channels_last.
at::Tensor lines_backward_weight(const at::Tensor& dy, const at::Tensor& x);

}  // namespace fastres
