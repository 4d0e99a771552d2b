// The CPU operators as torch.ops.fastres_native.*; schemas follow fastres/backends/ops.py.
#include <torch/library.h>

#include "operators.h"
#include "pool.h"

#define FASTRES_CONV "int[2] stride, int[2] padding, int[2] dilation, int groups"
#define FASTRES_BACKWARD                                                                       \
  "Tensor dout, Tensor? out, Tensor y, Tensor mean, Tensor invstd, Tensor? weight, Tensor? "   \
  "bias, Tensor? mean_g, Tensor? mean_gx, Tensor? shortcut, Tensor? s_mean, Tensor? s_invstd, " \
  "Tensor? s_weight, Tensor? mean_gx_s, int[] shortcut_size, int shortcut_stride, bool relu"

TORCH_LIBRARY_FRAGMENT(fastres_native, m) {
  m.def("conv_stats(Tensor x, Tensor weight, " FASTRES_CONV
        ", Tensor? pro_mean, Tensor? pro_invstd, Tensor? pro_weight, Tensor? pro_bias, bool stats)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("bn_stats(Tensor y) -> (Tensor, Tensor)");
  m.def(
      "bn_apply(Tensor y, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias, "
      "Tensor? shortcut, Tensor? s_mean, Tensor? s_invstd, Tensor? s_weight, Tensor? s_bias, "
      "int shortcut_stride, bool relu) -> Tensor");
  m.def(
      "bn_backward_reduce(Tensor dout, Tensor? out, Tensor y, Tensor mean, Tensor invstd, "
      "Tensor? weight, Tensor? bias, Tensor? shortcut, Tensor? s_mean, Tensor? s_invstd, "
      "bool relu) -> (Tensor, Tensor, Tensor)");
  m.def("bn_backward(" FASTRES_BACKWARD ") -> (Tensor, Tensor)");
  m.def("conv_backward(Tensor dy, Tensor x, Tensor weight, " FASTRES_CONV
        ", bool need_dx, bool need_dw) -> (Tensor, Tensor)");
  m.def("conv_bn_backward(" FASTRES_BACKWARD ", Tensor x, Tensor conv_weight, " FASTRES_CONV
        ", bool need_dx, bool need_dw) -> (Tensor, Tensor, Tensor)");
  m.def(
      "max_pool(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding) -> (Tensor, Tensor)");
  m.def(
      "max_pool_backward(Tensor dout, Tensor index, int[] size, int[2] kernel_size, "
      "int[2] stride, int[2] padding) -> Tensor");
  // Bytes of input and output a slice may hold; returns what it was before.
  m.def("set_slice_bytes(int bytes) -> int", &fastres::set_slice_bytes);
  m.def("pool_statistics() -> (int, int, int)", [] {
    const auto now = fastres::pool_statistics();
    return std::make_tuple(now.used, now.held, now.peak);
  });
  m.def("pool_release() -> ()", &fastres::pool_release);
}

TORCH_LIBRARY_IMPL(fastres_native, CPU, m) {
  m.impl("conv_stats", &fastres::conv_stats);
  m.impl("bn_stats", &fastres::bn_stats);
  m.impl("bn_apply", &fastres::bn_apply);
  m.impl("bn_backward_reduce", &fastres::bn_backward_reduce);
  m.impl("bn_backward", &fastres::bn_backward);
  m.impl("conv_backward", &fastres::conv_backward);
  m.impl("conv_bn_backward", &fastres::conv_bn_backward);
  m.impl("max_pool", &fastres::max_pool);
  m.impl("max_pool_backward", &fastres::max_pool_backward);
  m.impl("pad_shortcut", &fastres::pad_shortcut);
  m.impl("pad_shortcut_backward", &fastres::pad_shortcut_backward);
}
