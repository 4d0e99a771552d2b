// The operators that exist both on the CPU and on a GPU. csrc/cpu and csrc/cuda implement them.
#include <torch/library.h>

TORCH_LIBRARY(fastres_native, m) {
  m.def("pad_shortcut(Tensor x, int out_channels, int stride) -> Tensor");
  m.def("pad_shortcut_backward(Tensor dout, int[] size, int stride) -> Tensor");
  // relu(bn(y) + pad(shortcut)): mean and invstd are fp32 [C].
  m.def(
      "bn_apply_pad(Tensor y, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias, "
      "Tensor shortcut, int shortcut_stride, bool relu) -> Tensor");
  // `out` is needed iff relu; mean_gx None means frozen statistics; an empty shortcut_size means
  // that no gradient of the shortcut is wanted (an empty [0] tensor comes back).
  m.def(
      "bn_backward_pad(Tensor dout, Tensor? out, Tensor y, Tensor mean, Tensor invstd, "
      "Tensor? weight, Tensor? mean_g, Tensor? mean_gx, int[] shortcut_size, "
      "int shortcut_stride, bool relu) -> (Tensor dy, Tensor dshortcut)");
}
