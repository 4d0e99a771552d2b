// Shortcut option A by itself: the zero-padded strided identity and its gradient.

#include "../common/pad_shortcut_index.h"
#include "operators.h"
#include "pool.h"

namespace fastres {

at::Tensor pad_shortcut(const at::Tensor& x_, int64_t out_channels, int64_t stride) {
  const PoolScope pool;
  const at::Tensor x = dense(x_);
  const PadShortcutIndex index = PadShortcutIndex::make(x.size(2), x.size(3), x.size(1), out_channels, stride);
  at::Tensor out = empty_dense({x.size(0), out_channels, index.height_out, index.width_out}, x);
  for_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = data<T>(x);
    T* to = mutable_data<T>(out);
    Blocks(out.numel() / std::max<int64_t>(1, out_channels), out_channels)
        .each([&](int64_t, int64_t first, int64_t values) {
          for (int64_t i = first; i < first + values; i += out_channels) {
            const T* row = from + index.input_row(i / out_channels) * index.channels_in;
            std::copy_n(row, index.channels_in, to + i);
            std::fill_n(to + i + index.channels_in, out_channels - index.channels_in, T{});
          }
        });
  });
  return out;
}

at::Tensor pad_shortcut_backward(const at::Tensor& dout_, at::IntArrayRef size, int64_t stride) {
  const PoolScope pool;
  const at::Tensor dout = dense(dout_);
  const PadShortcutIndex index = PadShortcutIndex::make(size[2], size[3], size[1], dout.size(1), stride);
  const int64_t channels = index.channels_in;
  at::Tensor dx = empty_dense(size, dout);
  for_type(dout.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = data<T>(dout);
    T* to = mutable_data<T>(dx);
    Blocks(dx.numel() / std::max<int64_t>(1, channels), channels)
        .each([&](int64_t, int64_t first, int64_t values) {
          for (int64_t i = first; i < first + values; i += channels) {
            const int64_t row = index.output_row(i / channels);
            if (row < 0) {
              std::fill_n(to + i, channels, T{});
            } else {
              std::copy_n(from + row * index.channels_out, channels, to + i);
            }
          }
        });
  });
  return dx;
}

}  // namespace fastres
