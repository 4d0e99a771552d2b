// Index arithmetic of the zero-padded strided identity (shortcut option A), for CPU and GPU.
//
//   out[n, c, i, j] = x[n, c, s*i, s*j]  for c < channels_in, else 0
//
// A "row" is one pixel of one image: row = (n * height + h) * width + w. In a dense channels_last
// tensor the elements of a row are `channels` consecutive ones starting at row * channels.
// Everything is int64: a tensor may hold more than 2^31 elements.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTRES_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTRES_HOST_DEVICE inline
#endif

namespace fastres {

struct Pixel {
  int64_t n;
  int64_t h;
  int64_t w;
};

struct PadShortcutIndex {
  int64_t height_in;
  int64_t width_in;
  int64_t channels_in;
  int64_t height_out;
  int64_t width_out;
  int64_t channels_out;
  int64_t stride;

  // Output length of an axis of length `length_in`: ceil(length_in / stride), 0 for an empty axis.
  static FASTRES_HOST_DEVICE int64_t length_out(int64_t length_in, int64_t stride) {
    return (length_in + stride - 1) / stride;
  }

  static FASTRES_HOST_DEVICE PadShortcutIndex make(int64_t height_in, int64_t width_in,
                                                   int64_t channels_in, int64_t channels_out,
                                                   int64_t stride) {
    return {height_in,
            width_in,
            channels_in,
            length_out(height_in, stride),
            length_out(width_in, stride),
            channels_out,
            stride};
  }

  static FASTRES_HOST_DEVICE Pixel split(int64_t row, int64_t height, int64_t width) {
    const int64_t line = row / width;
    const int64_t n = line / height;
    return {n, line - n * height, row - line * width};
  }

  // Forward: the pixel of x read by output row `row_out`. Every output row has one, because
  // stride * (length_out - 1) <= length_in - 1.
  FASTRES_HOST_DEVICE Pixel input_pixel(int64_t row_out) const {
    const Pixel out = split(row_out, height_out, width_out);
    return {out.n, out.h * stride, out.w * stride};
  }

  FASTRES_HOST_DEVICE int64_t input_row(int64_t row_out) const {
    const Pixel in = input_pixel(row_out);
    return (in.n * height_in + in.h) * width_in + in.w;
  }

  // Backward: the output row that read input row `row_in`, or -1 where none did (gradient 0).
  FASTRES_HOST_DEVICE int64_t output_row(int64_t row_in) const {
    const Pixel in = split(row_in, height_in, width_in);
    const int64_t h = in.h / stride;
    const int64_t w = in.w / stride;
    if (h * stride != in.h || w * stride != in.w) {
      return -1;
    }
    return (in.n * height_out + h) * width_out + w;
  }

  // Element forms of the two above, for dense channels_last tensors. -1 stands for a padded zero.
  FASTRES_HOST_DEVICE int64_t input_offset(int64_t row_out, int64_t channel_out) const {
    return channel_out < channels_in ? input_row(row_out) * channels_in + channel_out : -1;
  }

  FASTRES_HOST_DEVICE int64_t output_offset(int64_t row_in, int64_t channel_in) const {
    const int64_t row = output_row(row_in);
    return row < 0 ? -1 : row * channels_out + channel_in;
  }
};

}  // namespace fastres
