// The bodies of the CUDA kernels as a CPU library, for test_csrc_cuda.py.
#include "cuda_words.h"
// after the words it needs
#include "cuda/pad_shortcut_kernels.cuh"

using fastres::PadShortcutIndex;

namespace {

// A grid that is too small for the rows, so that threads walk.
template <typename Body>
void run(int64_t rows, int64_t channels, int vector, Body body) {
  const int64_t vectors = channels / vector;
  const unsigned across = static_cast<unsigned>(std::min<int64_t>(vectors, 4));
  const unsigned chunks = static_cast<unsigned>((vectors + across - 1) / across);
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>((rows + 2) / 3, 2));
  emulate({blocks, chunks, 1}, {across, 3, 1}, body);
}

template <int N>
void forward(const float* x, float* out, const PadShortcutIndex& index, int64_t rows) {
  run(rows, index.channels_out, N,
      [&] { fastres::pad_shortcut_kernel<float, N>(x, out, index, rows); });
}

template <int N>
void backward(const float* dout, float* dx, const PadShortcutIndex& index, int64_t rows) {
  run(rows, index.channels_in, N,
      [&] { fastres::pad_shortcut_backward_kernel<float, N>(dout, dx, index, rows); });
}

}  // namespace

extern "C" {

void pad_shortcut(const float* x, float* out, const PadShortcutIndex* index, int64_t batch,
                  bool wide) {
  const int64_t rows = batch * index->height_out * index->width_out;
  (wide ? forward<4> : forward<1>)(x, out, *index, rows);
}

void pad_shortcut_backward(const float* dout, float* dx, const PadShortcutIndex* index,
                           int64_t batch, bool wide) {
  const int64_t rows = batch * index->height_in * index->width_in;
  (wide ? backward<4> : backward<1>)(dout, dx, *index, rows);
}

void bn_apply_pad(const float* y, const float* mean, const float* invstd, const float* weight,
                  const float* bias, const float* shortcut, float* out,
                  const PadShortcutIndex* index, int64_t batch, bool relu, bool wide) {
  const int64_t rows = batch * index->height_out * index->width_out;
  if (wide) {
    run(rows, index->channels_out, 4, [&] {
      fastres::bn_apply_pad_kernel<float, 4>(y, mean, invstd, weight, bias, shortcut, out, *index,
                                             rows, relu);
    });
  } else {
    run(rows, index->channels_out, 1, [&] {
      fastres::bn_apply_pad_kernel<float, 1>(y, mean, invstd, weight, bias, shortcut, out, *index,
                                             rows, relu);
    });
  }
}

void bn_backward_pad(const float* dout, const float* out, const float* y, const float* mean,
                     const float* invstd, const float* weight, const float* mean_g,
                     const float* mean_gx, float* dy, float* dshortcut,
                     const PadShortcutIndex* index, int64_t batch, bool wide) {
  const int64_t rows = batch * index->height_out * index->width_out;
  if (wide) {
    run(rows, index->channels_out, 4, [&] {
      fastres::bn_backward_pad_kernel<float, 4>(dout, out, y, mean, invstd, weight, mean_g,
                                                mean_gx, dy, dshortcut, *index, rows);
    });
  } else {
    run(rows, index->channels_out, 1, [&] {
      fastres::bn_backward_pad_kernel<float, 1>(dout, out, y, mean, invstd, weight, mean_g,
                                                mean_gx, dy, dshortcut, *index, rows);
    });
  }
}

PadShortcutIndex make_index(int64_t height, int64_t width, int64_t channels, int64_t out_channels,
                            int64_t stride) {
  return PadShortcutIndex::make(height, width, channels, out_channels, stride);
}

int64_t input_offset(const PadShortcutIndex* index, int64_t row, int64_t channel) {
  return index->input_offset(row, channel);
}

int64_t output_offset(const PadShortcutIndex* index, int64_t row, int64_t channel) {
  return index->output_offset(row, channel);
}
}
