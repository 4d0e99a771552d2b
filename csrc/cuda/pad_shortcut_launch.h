// What the host (pad_shortcut.cpp) asks of the device (pad_shortcut.cu). The two are apart so that
// nvcc never reads PyTorch's headers: that would be most of its time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/pad_shortcut_index.h"

namespace fastres {

enum class Element { kFloat32, kFloat16, kBFloat16 };

// Pointers are to dense channels_last activations of one element type and to fp32 vectors of
// channels_out; null where an argument is absent. `rows` counts the pixels that are written.
// Launch errors are left in cudaGetLastError().

struct PadShortcutArguments {
  const void* x;
  void* out;
};

struct PadShortcutBackwardArguments {
  const void* dout;
  void* dx;
};

struct BnApplyPadArguments {
  const void* y;
  const float* mean;
  const float* invstd;
  const float* weight;
  const float* bias;
  const void* shortcut;
  void* out;
  bool relu;
};

// `out` is null without a ReLU, `mean_gx` with frozen statistics, `dshortcut` where it is unwanted.
struct BnBackwardPadArguments {
  const void* dout;
  const void* out;
  const void* y;
  const float* mean;
  const float* invstd;
  const float* weight;
  const float* mean_g;
  const float* mean_gx;
  void* dy;
  void* dshortcut;
};

void launch(const PadShortcutArguments& arguments, Element element, const PadShortcutIndex& index,
            int64_t rows, cudaStream_t stream);
void launch(const PadShortcutBackwardArguments& arguments, Element element,
            const PadShortcutIndex& index, int64_t rows, cudaStream_t stream);
void launch(const BnApplyPadArguments& arguments, Element element, const PadShortcutIndex& index,
            int64_t rows, cudaStream_t stream);
void launch(const BnBackwardPadArguments& arguments, Element element,
            const PadShortcutIndex& index, int64_t rows, cudaStream_t stream);

}  // namespace fastres
