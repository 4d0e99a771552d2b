// Device side of shortcut option A: launch shapes and element types. A vector is 16 bytes where
// both channel counts divide by it and the pointers are aligned, else one element.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "cuda/pad_shortcut_kernels.cuh"
#include "cuda/pad_shortcut_launch.h"

namespace fastres {
namespace {

constexpr int kVectorBytes = 16;
constexpr int64_t kBlocksPerMultiprocessor = 16;

struct Shape {
  dim3 grid;
  dim3 block;
};

// Threads over `rows` rows of `channels` channels in vectors of `vector` elements.
Shape shape_of(int64_t rows, int64_t channels, int vector) {
  const int64_t vectors = channels / vector;
  const int64_t across = std::min<int64_t>(vectors, kThreads);
  const int64_t down = std::max<int64_t>(1, kThreads / across);
  const int64_t chunks = (vectors + across - 1) / across;
  int device = 0;
  int multiprocessors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t limit =
      std::max<int64_t>(1, kBlocksPerMultiprocessor * multiprocessors / chunks);
  const int64_t blocks = std::min((rows + down - 1) / down, limit);
  return {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(chunks)),
          dim3(static_cast<unsigned>(across), static_cast<unsigned>(down))};
}

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

// Calls body.operator()<T, N>() with the element type and the widest usable vector.
template <typename Body>
void dispatch(Element element, const PadShortcutIndex& index,
              std::initializer_list<const void*> pointers, const Body& body) {
  const auto with_type = [&]<typename T>() {
    constexpr int kWide = kVectorBytes / static_cast<int>(sizeof(T));
    const bool wide = index.channels_in % kWide == 0 && index.channels_out % kWide == 0 &&
                      std::all_of(pointers.begin(), pointers.end(), aligned);
    if (wide) {
      body.template operator()<T, kWide>();
    } else {
      body.template operator()<T, 1>();
    }
  };
  switch (element) {
    case Element::kFloat32:
      return with_type.template operator()<float>();
    case Element::kFloat16:
      return with_type.template operator()<__half>();
    case Element::kBFloat16:
      return with_type.template operator()<__nv_bfloat16>();
  }
}

}  // namespace

void launch(const PadShortcutArguments& arguments, Element element, const PadShortcutIndex& index,
            int64_t rows, cudaStream_t stream) {
  dispatch(element, index, {arguments.x, arguments.out}, [&]<typename T, int N>() {
    const Shape shape = shape_of(rows, index.channels_out, N);
    pad_shortcut_kernel<T, N><<<shape.grid, shape.block, 0, stream>>>(
        static_cast<const T*>(arguments.x), static_cast<T*>(arguments.out), index, rows);
  });
}

void launch(const PadShortcutBackwardArguments& arguments, Element element,
            const PadShortcutIndex& index, int64_t rows, cudaStream_t stream) {
  dispatch(element, index, {arguments.dout, arguments.dx}, [&]<typename T, int N>() {
    const Shape shape = shape_of(rows, index.channels_in, N);
    pad_shortcut_backward_kernel<T, N><<<shape.grid, shape.block, 0, stream>>>(
        static_cast<const T*>(arguments.dout), static_cast<T*>(arguments.dx), index, rows);
  });
}

void launch(const BnApplyPadArguments& arguments, Element element, const PadShortcutIndex& index,
            int64_t rows, cudaStream_t stream) {
  dispatch(element, index, {arguments.y, arguments.shortcut, arguments.out},
           [&]<typename T, int N>() {
             const Shape shape = shape_of(rows, index.channels_out, N);
             bn_apply_pad_kernel<T, N><<<shape.grid, shape.block, 0, stream>>>(
                 static_cast<const T*>(arguments.y), arguments.mean, arguments.invstd,
                 arguments.weight, arguments.bias, static_cast<const T*>(arguments.shortcut),
                 static_cast<T*>(arguments.out), index, rows, arguments.relu);
           });
}

void launch(const BnBackwardPadArguments& arguments, Element element,
            const PadShortcutIndex& index, int64_t rows, cudaStream_t stream) {
  dispatch(element, index,
           {arguments.dout, arguments.out, arguments.y, arguments.dy, arguments.dshortcut},
           [&]<typename T, int N>() {
             const Shape shape = shape_of(rows, index.channels_out, N);
             bn_backward_pad_kernel<T, N><<<shape.grid, shape.block, 0, stream>>>(
                 static_cast<const T*>(arguments.dout), static_cast<const T*>(arguments.out),
                 static_cast<const T*>(arguments.y), arguments.mean, arguments.invstd,
                 arguments.weight, arguments.mean_g, arguments.mean_gx,
                 static_cast<T*>(arguments.dy), static_cast<T*>(arguments.dshortcut), index, rows);
           });
}

}  // namespace fastres
