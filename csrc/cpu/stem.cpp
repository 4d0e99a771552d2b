// The stem after its convolution: BN, ReLU and max pooling. What lies between them is a line of
// pixels in the cache, never a tensor.

#include "block_rows.h"
#include "pool_lines.h"

namespace fastres {

using at::Tensor;

std::tuple<Tensor, Tensor> bn_max_pool(const Tensor& y_, const Tensor& mean, const Tensor& invstd,
                                       const OptionalTensor& weight, const OptionalTensor& bias,
                                       at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                       at::IntArrayRef padding) {
  const PoolScope pool;
  const Tensor y = dense(y_);
  const BranchLanes branch(mean, invstd, weight, bias);
  const PoolSize size = pool_size(y.sizes(), kernel_size, stride, padding);
  Tensor out = empty_dense({y.size(0), y.size(1), size.out_height, size.out_width}, y);
  Tensor index =
      at::empty(out.sizes(), out.options().dtype(at::kByte), at::MemoryFormat::ChannelsLast);
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const PoolForward<T> forward(size, kernel_size, stride, padding);
    const T* const from = data<T>(y);
    T* const to = mutable_data<T>(out);
    uint8_t* const places = mutable_data<uint8_t>(index);
    const int64_t in_line = size.width * size.channels, line = size.out_width * size.channels;
    const int64_t kept = kernel_size[0], period = period_of(size.channels);
    at::parallel_for(0, y.size(0) * size.out_height, 1, [&](int64_t begin, int64_t end) {
      // the lines normalised last: windows overlap
      std::vector<T> lines(kept * in_line);
      std::vector<int64_t> holds(kept, -1);
      for (int64_t l = begin; l < end; ++l) {
        const int64_t top = l / size.out_height * size.height;
        forward.line(l % size.out_height, to + l * line, places + l * line, [&](int64_t h) {
          const int64_t slot = h % kept;
          T* const z = lines.data() + slot * in_line;
          if (holds[slot] != top + h) {
            kernels<T>().apply(from + (top + h) * in_line, z, in_line, period, branch.vectors(),
                               nullptr, {}, Shortcut::none, true);
            holds[slot] = top + h;
          }
          return static_cast<const T*>(z);
        });
      }
    });
  });
  return {out, index};
}

std::tuple<Tensor, Tensor> bn_max_pool_backward_reduce(
    const Tensor& dout_, const Tensor& index_, const Tensor& y_, const Tensor& mean,
    const Tensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
    at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding) {
  const PoolScope pool;
  const Tensor dout = dense(dout_), index = dense(index_), y = dense(y_);
  const BranchLanes branch(mean, invstd, weight, bias);
  const PoolSize size = pool_size(y.sizes(), kernel_size, stride, padding);
  const int64_t channels = size.channels, period = period_of(channels);
  const int64_t lines = y.size(0) * size.height, line = size.width * channels;
  ColumnSums sums(channels);
  sums.reserve(lines);
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const PoolBackward<T> backward(size, kernel_size, stride, padding);
    at::parallel_for(0, lines, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> dz(line);
      std::vector<float> lanes(3 * period);
      for (int64_t l = begin; l < end; ++l) {
        backward.line(data<T>(dout), data<uint8_t>(index), l / size.height, l % size.height,
                      dz.data());
        kernels<T>().reduce(dz.data(), nullptr, data<T>(y) + l * line, nullptr, line, period,
                            branch.vectors(), nullptr, true, lanes.data(), lanes.data() + period,
                            lanes.data() + 2 * period);
        float *sum_g = sums.first(l), *sum_gd = sums.second(l);
        for (int64_t i = 0; i < period; i += channels) {
          for (int64_t c = 0; c < channels; ++c) {
            sum_g[c] += lanes[i + c];
            sum_gd[c] += lanes[period + i + c];
          }
        }
      }
    });
  });
  return sums.totals(branch.invstd, y);
}

Tensor bn_max_pool_backward(const Tensor& dout_, const Tensor& index_, const Tensor& y_,
                            const Tensor& mean, const Tensor& invstd, const OptionalTensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& mean_g,
                            const OptionalTensor& mean_gx, at::IntArrayRef kernel_size,
                            at::IntArrayRef stride, at::IntArrayRef padding) {
  const PoolScope pool;
  const Tensor dout = dense(dout_), index = dense(index_), y = dense(y_);
  const BranchLanes branch(mean, invstd, weight, bias);
  const GradientLanes gradient(branch, mean_g, mean_gx);
  const PoolSize size = pool_size(y.sizes(), kernel_size, stride, padding);
  const int64_t line = size.width * size.channels;
  Tensor dy = empty_dense(y.sizes(), y);
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const PoolBackward<T> backward(size, kernel_size, stride, padding);
    T* const to = mutable_data<T>(dy);
    at::parallel_for(0, y.size(0) * size.height, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> dz(line);
      for (int64_t l = begin; l < end; ++l) {
        backward.line(data<T>(dout), data<uint8_t>(index), l / size.height, l % size.height,
                      dz.data());
        kernels<T>().backward(dz.data(), nullptr, data<T>(y) + l * line, nullptr, line,
                              period_of(size.channels), branch.vectors(), gradient.vectors(),
                              nullptr, {}, true, to + l * line, nullptr);
      }
    });
  });
  return dy;
}

}  // namespace fastres
