// Max pooling that remembers the place in the window in one byte, not the pixel in eight.

#include "pool.h"
#include "pool_lines.h"

namespace fastres {

PoolSize pool_size(at::IntArrayRef x, at::IntArrayRef kernel, at::IntArrayRef stride,
                   at::IntArrayRef padding) {
  const auto extent = [&](int64_t axis) {
    return (x[2 + axis] + 2 * padding[axis] - kernel[axis]) / stride[axis] + 1;
  };
  return {x[2], x[3], extent(0), extent(1), x[1], kernel[1]};
}

std::tuple<at::Tensor, at::Tensor> max_pool(const at::Tensor& x_, at::IntArrayRef kernel_size,
                                            at::IntArrayRef stride, at::IntArrayRef padding) {
  const PoolScope pool;
  const at::Tensor x = dense(x_);
  const PoolSize size = pool_size(x.sizes(), kernel_size, stride, padding);
  at::Tensor out = empty_dense({x.size(0), x.size(1), size.out_height, size.out_width}, x);
  at::Tensor index =
      at::empty(out.sizes(), out.options().dtype(at::kByte), at::MemoryFormat::ChannelsLast);
  for_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const PoolForward<T> forward(size, kernel_size, stride, padding);
    const T* const from = data<T>(x);
    T* const to = mutable_data<T>(out);
    uint8_t* const places = mutable_data<uint8_t>(index);
    const int64_t in_line = size.width * size.channels, line = size.out_width * size.channels;
    at::parallel_for(0, x.size(0) * size.out_height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t l = begin; l < end; ++l) {
        const T* const image = from + l / size.out_height * size.height * in_line;
        forward.line(l % size.out_height, to + l * line, places + l * line,
                     [&](int64_t h) { return image + h * in_line; });
      }
    });
  });
  return {out, index};
}

at::Tensor max_pool_backward(const at::Tensor& dout_, const at::Tensor& index_,
                             at::IntArrayRef size_, at::IntArrayRef kernel_size,
                             at::IntArrayRef stride, at::IntArrayRef padding) {
  const PoolScope pool;
  const at::Tensor dout = dense(dout_), index = dense(index_);
  at::Tensor dx = empty_dense(size_, dout);
  const PoolSize size = pool_size(size_, kernel_size, stride, padding);
  for_type(dout.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const PoolBackward<T> backward(size, kernel_size, stride, padding);
    T* const to = mutable_data<T>(dx);
    at::parallel_for(0, size_[0] * size.height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t l = begin; l < end; ++l) {
        backward.line(data<T>(dout), data<uint8_t>(index), l / size.height, l % size.height,
                      to + l * size.width * size.channels);
      }
    });
  });
  return dx;
}

}  // namespace fastres
