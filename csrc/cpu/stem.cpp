// The stem after its convolution: BN, ReLU and max pooling.

#include "operators.h"

namespace fastres {

using at::Tensor;

std::tuple<Tensor, Tensor> bn_max_pool(const Tensor& y, const Tensor& mean, const Tensor& invstd,
                                       const OptionalTensor& weight, const OptionalTensor& bias,
                                       at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                       at::IntArrayRef padding) {
  return max_pool(bn_apply(y, mean, invstd, weight, bias, {}, {}, {}, {}, {}, 1, true), kernel_size, stride, padding);
}

std::tuple<Tensor, Tensor> bn_max_pool_backward_reduce(
    const Tensor& dout, const Tensor& index, const Tensor& y, const Tensor& mean,
    const Tensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding) {
  const Tensor dz = max_pool_backward(dout, index, y.sizes(), kernel_size, stride, padding);
  auto [sum_g, sum_gx, none] =
      bn_backward_reduce(dz, {}, y, mean, invstd, weight, bias, {}, {}, {}, true);
  return {sum_g, sum_gx};
}

Tensor bn_max_pool_backward(const Tensor& dout, const Tensor& index, const Tensor& y,
                            const Tensor& mean, const Tensor& invstd, const OptionalTensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& mean_g,
                            const OptionalTensor& mean_gx, at::IntArrayRef kernel_size,
                            at::IntArrayRef stride, at::IntArrayRef padding) {
  const Tensor dz = max_pool_backward(dout, index, y.sizes(), kernel_size, stride, padding);
  auto [dy, none] = bn_backward(dz, {}, y, mean, invstd, weight, bias, mean_g, mean_gx, {}, {}, {},
                                {}, {}, {}, 1, true);
  return dy;
}

}  // namespace fastres
