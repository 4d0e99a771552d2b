// The CPU operators as torch.ops.fastres_native.*; schemas follow fastres/backends/ops.py.
#include <torch/library.h>

#include "operators.h"
#include "pool.h"

#define FASTRES_CONV "int[2] stride, int[2] padding, int[2] dilation, int groups"
#define FASTRES_BACKWARD                                                                       \
  "Tensor dout, Tensor? out, Tensor y, Tensor mean, Tensor invstd, Tensor? weight, Tensor? "   \
  "bias, Tensor? mean_g, Tensor? mean_gx, Tensor? shortcut, Tensor? s_mean, Tensor? s_invstd, " \
  "Tensor? s_weight, Tensor? mean_gx_s, int[] shortcut_size, int shortcut_stride, bool relu"
#define FASTRES_BN "Tensor? mean, Tensor? invstd, Tensor? weight, Tensor? bias"
#define FASTRES_EXPAND                                                                        \
  "Tensor y, " FASTRES_BN ", Tensor? pivot, Tensor conv_weight, Tensor scale, Tensor shift, " \
  "Tensor? shortcut, Tensor? s_pivot, Tensor? s_conv_weight, Tensor? s_scale, "               \
  "Tensor? s_shift, int[2] shortcut_stride, bool relu"
#define FASTRES_STEM "Tensor y, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias"
#define FASTRES_POOL "int[2] kernel_size, int[2] stride, int[2] padding"

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
  m.def("moments(Tensor y, " FASTRES_BN ", Tensor pivot, int[2] stride) -> (Tensor, Tensor)");
  m.def(
      "moment_statistics(Tensor y, Tensor conv_weight, Tensor s, Tensor gram, Tensor pivot, "
      "Tensor? weight, Tensor? bias, int rows, float eps) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("expand(" FASTRES_EXPAND ") -> Tensor");
  m.def("expand_reduce(" FASTRES_EXPAND
        ", Tensor next_weight) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("expand_backward_weight(Tensor dout, Tensor? out, Tensor y, " FASTRES_BN
        ", Tensor pivot, int[2] stride) -> (Tensor, Tensor)");
  m.def(
      "moment_gradients(Tensor y, Tensor conv_weight, Tensor product, Tensor sum_g, "
      "Tensor? weight, Tensor mean, Tensor invstd, Tensor pivot, Tensor? offset, Tensor? shift) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "moment_batch_gradients(Tensor y, Tensor conv_weight, Tensor gain, Tensor dmatrix, "
      "Tensor all_g, Tensor all_gy, Tensor? weight, Tensor invstd, Tensor pivot, Tensor offset, "
      "Tensor covariance, Tensor? shift, Tensor? count, int rows) -> (Tensor, Tensor, Tensor)");
  m.def("expand_backward_data(Tensor dout, Tensor? out, Tensor y, " FASTRES_BN
        ", Tensor? pivot, Tensor gain, Tensor? mixing, Tensor? constant, int[2] stride)"
        " -> (Tensor, Tensor, Tensor)");
  m.def(
      "chain_backward(Tensor dout, Tensor? out, Tensor y, Tensor mean, Tensor invstd, "
      "Tensor? weight, Tensor? bias, Tensor? mean_g, Tensor? mean_gx, bool relu, Tensor x, "
      "Tensor conv_weight, " FASTRES_CONV
      ", Tensor? pro_mean, Tensor? pro_invstd, Tensor? pro_weight, Tensor? pro_bias, "
      "Tensor? residual, Tensor? residual_mask, int[2] residual_stride, bool mask_by_x, "
      "bool need_dx, bool need_dw) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("bn_max_pool(" FASTRES_STEM ", " FASTRES_POOL ") -> (Tensor, Tensor)");
  m.def("bn_max_pool_backward_reduce(Tensor dout, Tensor index, " FASTRES_STEM ", " FASTRES_POOL
        ") -> (Tensor, Tensor)");
  m.def("bn_max_pool_backward(Tensor dout, Tensor index, " FASTRES_STEM
        ", Tensor? mean_g, Tensor? mean_gx, " FASTRES_POOL ") -> Tensor");
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
  m.impl("moments", &fastres::moments);
  m.impl("moment_statistics", &fastres::moment_statistics);
  m.impl("expand", &fastres::expand);
  m.impl("expand_reduce", &fastres::expand_reduce);
  m.impl("expand_backward_weight", &fastres::expand_backward_weight);
  m.impl("moment_gradients", &fastres::moment_gradients);
  m.impl("moment_batch_gradients", &fastres::moment_batch_gradients);
  m.impl("expand_backward_data", &fastres::expand_backward_data);
  m.impl("chain_backward", &fastres::chain_backward);
  m.impl("bn_max_pool", &fastres::bn_max_pool);
  m.impl("bn_max_pool_backward_reduce", &fastres::bn_max_pool_backward_reduce);
  m.impl("bn_max_pool_backward", &fastres::bn_max_pool_backward);
}
