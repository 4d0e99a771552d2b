// Shortcut option A on a GPU: the zero-padded strided identity, alone and inside the join of a
// residual block, forward and backward. fp32, fp16 and bf16; arithmetic in fp32.
//
// Every kernel walks dense channels_last rows. The threads of a block are a tile of
// (channel vectors) x (rows): a thread keeps its channels, so that per-channel parameters stay in
// registers, and strides over rows. A vector is N channels side by side; N divides both counts.
// No shared memory and no synchronisation: a test runs these bodies thread by thread on the CPU.
#pragma once

#include <cstdint>

#include "common/pad_shortcut_index.h"

namespace fastres {

constexpr int kThreads = 256;

// Left to itself ptxas aims at three blocks on an sm_90 multiprocessor and spills a few registers.
constexpr int kBlocksWithoutSpills = 2;

template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T values[N];
};

template <typename T, int N>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& vector) {
  *reinterpret_cast<Vector<T, N>*>(to) = vector;
}

template <typename T, int N>
__device__ __forceinline__ Vector<T, N> zeros() {
  Vector<T, N> vector;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    vector.values[k] = static_cast<T>(0.0f);
  }
  return vector;
}

// N floats of a per-channel vector, or `otherwise` where there is none.
template <int N>
__device__ __forceinline__ Vector<float, N> channel_values(const float* from, int64_t channel,
                                                           float otherwise) {
  Vector<float, N> vector;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    vector.values[k] = from == nullptr ? otherwise : from[channel + k];
  }
  return vector;
}

// The calling thread's first channel and its walk over rows.
template <int N>
struct Walk {
  int64_t channel;
  int64_t row;
  int64_t step;

  __device__ __forceinline__ Walk()
      : channel((static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N),
        row(static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y),
        step(static_cast<int64_t>(gridDim.x) * blockDim.y) {}
};

// out[row, c] = x[input_row(row), c] for c < channels_in, else 0
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    pad_shortcut_kernel(const T* __restrict__ x, T* __restrict__ out, PadShortcutIndex index,
                        int64_t rows) {
  Walk<N> walk;
  if (walk.channel >= index.channels_out) {
    return;
  }
  const bool padded = walk.channel >= index.channels_in;
  for (; walk.row < rows; walk.row += walk.step) {
    Vector<T, N> value = zeros<T, N>();
    if (!padded) {
      value = load<T, N>(x + index.input_row(walk.row) * index.channels_in + walk.channel);
    }
    store(out + walk.row * index.channels_out + walk.channel, value);
  }
}

// dx[row, c] = dout[output_row(row), c] where there is such a row, else 0
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    pad_shortcut_backward_kernel(const T* __restrict__ dout, T* __restrict__ dx,
                                 PadShortcutIndex index, int64_t rows) {
  Walk<N> walk;
  if (walk.channel >= index.channels_in) {
    return;
  }
  for (; walk.row < rows; walk.row += walk.step) {
    const int64_t source = index.output_row(walk.row);
    Vector<T, N> value = zeros<T, N>();
    if (source >= 0) {
      value = load<T, N>(dout + source * index.channels_out + walk.channel);
    }
    store(dx + walk.row * index.channels_in + walk.channel, value);
  }
}

// out = relu((y - mean) * (invstd * weight) + bias + pad(shortcut)); a NaN passes the ReLU.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    bn_apply_pad_kernel(const T* __restrict__ y, const float* __restrict__ mean,
                        const float* __restrict__ invstd, const float* __restrict__ weight,
                        const float* __restrict__ bias, const T* __restrict__ shortcut,
                        T* __restrict__ out, PadShortcutIndex index, int64_t rows, bool relu) {
  Walk<N> walk;
  if (walk.channel >= index.channels_out) {
    return;
  }
  const auto center = channel_values<N>(mean, walk.channel, 0.0f);
  auto scale = channel_values<N>(invstd, walk.channel, 1.0f);
  const auto gamma = channel_values<N>(weight, walk.channel, 1.0f);
  const auto beta = channel_values<N>(bias, walk.channel, 0.0f);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    scale.values[k] *= gamma.values[k];
  }
  const bool padded = walk.channel >= index.channels_in;
  for (; walk.row < rows; walk.row += walk.step) {
    const int64_t at = walk.row * index.channels_out + walk.channel;
    const auto values = load<T, N>(y + at);
    Vector<T, N> added = zeros<T, N>();
    if (!padded) {
      added = load<T, N>(shortcut + index.input_row(walk.row) * index.channels_in + walk.channel);
    }
    Vector<T, N> result;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      float sum = (static_cast<float>(values.values[k]) - center.values[k]) * scale.values[k] +
                  beta.values[k] + static_cast<float>(added.values[k]);
      if (relu && sum <= 0.0f) {
        sum = 0.0f;
      }
      result.values[k] = static_cast<T>(sum);
    }
    store(out + at, result);
  }
}

// g = dout * !(out <= 0); dy = weight * invstd * (g - mean_g - xhat * mean_gx).
// The shortcut's gradient is written by the same threads: output pixel (i, j) owns the stride x
// stride input pixels from (s*i, s*j) on; the first gets g, the others 0.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksWithoutSpills)
    bn_backward_pad_kernel(const T* __restrict__ dout, const T* __restrict__ out,
                           const T* __restrict__ y, const float* __restrict__ mean,
                           const float* __restrict__ invstd, const float* __restrict__ weight,
                           const float* __restrict__ mean_g, const float* __restrict__ mean_gx,
                           T* __restrict__ dy, T* __restrict__ dshortcut, PadShortcutIndex index,
                           int64_t rows) {
  Walk<N> walk;
  if (walk.channel >= index.channels_out) {
    return;
  }
  const auto center = channel_values<N>(mean, walk.channel, 0.0f);
  auto scale = channel_values<N>(invstd, walk.channel, 1.0f);
  auto slope = channel_values<N>(mean_gx, walk.channel, 0.0f);
  const auto gamma = channel_values<N>(weight, walk.channel, 1.0f);
  const auto average_g = channel_values<N>(mean_g, walk.channel, 0.0f);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    slope.values[k] *= scale.values[k];
    scale.values[k] *= gamma.values[k];
  }
  const bool frozen = mean_gx == nullptr;
  const bool scatters = dshortcut != nullptr && walk.channel < index.channels_in;
  for (; walk.row < rows; walk.row += walk.step) {
    const int64_t at = walk.row * index.channels_out + walk.channel;
    auto gradient = load<T, N>(dout + at);
    if (out != nullptr) {
      const auto outputs = load<T, N>(out + at);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (static_cast<float>(outputs.values[k]) <= 0.0f) {
          gradient.values[k] = static_cast<T>(0.0f);
        }
      }
    }
    Vector<T, N> result;
    if (frozen) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        result.values[k] =
            static_cast<T>(scale.values[k] * static_cast<float>(gradient.values[k]));
      }
    } else {
      const auto values = load<T, N>(y + at);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float projected =
            (static_cast<float>(values.values[k]) - center.values[k]) * slope.values[k];
        result.values[k] = static_cast<T>(
            scale.values[k] *
            (static_cast<float>(gradient.values[k]) - average_g.values[k] - projected));
      }
    }
    store(dy + at, result);
    if (scatters) {
      const Pixel first = index.input_pixel(walk.row);
      const int64_t h_end = min(first.h + index.stride, index.height_in);
      const int64_t w_end = min(first.w + index.stride, index.width_in);
      for (int64_t h = first.h; h < h_end; ++h) {
        for (int64_t w = first.w; w < w_end; ++w) {
          const int64_t row_in = (first.n * index.height_in + h) * index.width_in + w;
          const bool read = h == first.h && w == first.w;
          store(dshortcut + row_in * index.channels_in + walk.channel,
                read ? gradient : zeros<T, N>());
        }
      }
    }
  }
}

}  // namespace fastres
