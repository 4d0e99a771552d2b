// Max pooling that remembers the place in the window in one byte, not the pixel in eight.

#include "operators.h"
#include "pool.h"

namespace fastres {
namespace {

struct Window {
  int64_t height, width, out_height, out_width, channels;
  at::IntArrayRef kernel, stride, padding;
};

int64_t extent(int64_t in, int64_t kernel, int64_t stride, int64_t padding) {
  return (in + 2 * padding - kernel) / stride + 1;
}

// fn(line) over `lines` lines of pixels, in parallel.
template <typename F>
void each_line(int64_t lines, F fn) {
  at::parallel_for(0, lines, 1, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      fn(line);
    }
  });
}

template <typename T>
void forward(const T* x, T* out, uint8_t* index, int64_t images, const Window& w) {
  each_line(images * w.out_height, [&](int64_t line) {
    const int64_t image = line / w.out_height, top = line % w.out_height * w.stride[0] - w.padding[0];
    const int64_t taps = w.kernel[0] * w.kernel[1];
    std::vector<const T*> pixels(taps);
    std::vector<uint8_t> which(taps);
    std::vector<float> scratch(4 * w.channels);
    for (int64_t j = 0; j < w.out_width; ++j) {
      const int64_t left = j * w.stride[1] - w.padding[1];
      int64_t count = 0;
      for (int64_t k = 0; k < taps; ++k) {
        const int64_t h = top + k / w.kernel[1], v = left + k % w.kernel[1];
        if (h >= 0 && h < w.height && v >= 0 && v < w.width) {
          pixels[count] = x + ((image * w.height + h) * w.width + v) * w.channels;
          which[count++] = static_cast<uint8_t>(k);
        }
      }
      const int64_t to = (line * w.out_width + j) * w.channels;
      kernels<T>().max_window(pixels.data(), which.data(), count, w.channels, out + to, index + to,
                              scratch.data());
    }
  });
}

template <typename T>
void gradient(const T* dout, const uint8_t* index, T* dx, int64_t images, const Window& w) {
  each_line(images * w.height, [&](int64_t line) {
    const int64_t image = line / w.height, h = line % w.height;
    const int64_t taps = w.kernel[0] * w.kernel[1];
    std::vector<const T*> gradients(taps);
    std::vector<const uint8_t*> indices(taps);
    std::vector<uint8_t> which(taps);
    std::vector<float> sum(w.channels);
    for (int64_t v = 0; v < w.width; ++v) {
      int64_t count = 0;
      for (int64_t k = 0; k < taps; ++k) {
        const int64_t below = h + w.padding[0] - k / w.kernel[1];
        const int64_t right = v + w.padding[1] - k % w.kernel[1];
        const int64_t i = below / w.stride[0], j = right / w.stride[1];
        if (below >= 0 && right >= 0 && below % w.stride[0] == 0 && right % w.stride[1] == 0 &&
            i < w.out_height && j < w.out_width) {
          const int64_t from = ((image * w.out_height + i) * w.out_width + j) * w.channels;
          gradients[count] = dout + from;
          indices[count] = index + from;
          which[count++] = static_cast<uint8_t>(k);
        }
      }
      kernels<T>().max_gradient(gradients.data(), indices.data(), which.data(), count, w.channels,
                                dx + (line * w.width + v) * w.channels, sum.data());
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> max_pool(const at::Tensor& x_, at::IntArrayRef kernel_size,
                                            at::IntArrayRef stride, at::IntArrayRef padding) {
  const PoolScope pool;
  const at::Tensor x = dense(x_);
  const Window window{x.size(2),
                      x.size(3),
                      extent(x.size(2), kernel_size[0], stride[0], padding[0]),
                      extent(x.size(3), kernel_size[1], stride[1], padding[1]),
                      x.size(1),
                      kernel_size,
                      stride,
                      padding};
  at::Tensor out =
      empty_dense({x.size(0), x.size(1), window.out_height, window.out_width}, x);
  at::Tensor index = at::empty(out.sizes(), out.options().dtype(at::kByte),
                               at::MemoryFormat::ChannelsLast);
  for_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    forward(data<T>(x), mutable_data<T>(out), mutable_data<uint8_t>(index), x.size(0), window);
  });
  return {out, index};
}

at::Tensor max_pool_backward(const at::Tensor& dout_, const at::Tensor& index_,
                             at::IntArrayRef size, at::IntArrayRef kernel_size,
                             at::IntArrayRef stride, at::IntArrayRef padding) {
  const PoolScope pool;
  const at::Tensor dout = dense(dout_), index = dense(index_);
  at::Tensor dx = empty_dense(size, dout);
  const Window window{size[2],     size[3], dout.size(2), dout.size(3),
                      size[1],     kernel_size, stride,   padding};
  for_type(dout.scalar_type(), [&](auto type) {
    using T = decltype(type);
    gradient(data<T>(dout), data<uint8_t>(index), mutable_data<T>(dx), size[0], window);
  });
  return dx;
}

}  // namespace fastres
