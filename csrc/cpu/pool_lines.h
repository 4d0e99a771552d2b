// Max pooling line by line: which pixels meet in a window, worked out once for each axis.
#pragma once

#include "operators.h"

namespace fastres {

// One axis of a pooling: for each position on it the places in the window and the positions they
// stand for on the other side.
class PoolAxis {
 public:
  struct Tap {
    int64_t place, position;
  };

  // The positions of the input that an output reads.
  static PoolAxis forward(int64_t in, int64_t out, int64_t kernel, int64_t stride,
                          int64_t padding) {
    PoolAxis axis;
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t k = 0; k < kernel; ++k) {
        const int64_t i = o * stride - padding + k;
        if (i >= 0 && i < in) axis.taps_.push_back({k, i});
      }
      axis.ends_.push_back(static_cast<int64_t>(axis.taps_.size()));
    }
    return axis;
  }

  // The positions of the output that read an input.
  static PoolAxis backward(int64_t in, int64_t out, int64_t kernel, int64_t stride,
                           int64_t padding) {
    PoolAxis axis;
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t k = 0; k < kernel; ++k) {
        const int64_t from = i + padding - k, o = from / stride;
        if (from >= 0 && from % stride == 0 && o < out) axis.taps_.push_back({k, o});
      }
      axis.ends_.push_back(static_cast<int64_t>(axis.taps_.size()));
    }
    return axis;
  }

  const Tap* begin(int64_t at) const { return taps_.data() + (at == 0 ? 0 : ends_[at - 1]); }
  const Tap* end(int64_t at) const { return taps_.data() + ends_[at]; }

 private:
  std::vector<Tap> taps_;
  std::vector<int64_t> ends_{};
};

struct PoolSize {
  int64_t height, width, out_height, out_width, channels, kernel_width;
};

// The sizes of pooling x.
PoolSize pool_size(at::IntArrayRef x, at::IntArrayRef kernel, at::IntArrayRef stride,
                   at::IntArrayRef padding);

// Computes lines of a pooling's output from lines of its input.
template <typename T>
class PoolForward {
 public:
  PoolForward(const PoolSize& size, at::IntArrayRef kernel, at::IntArrayRef stride,
              at::IntArrayRef padding)
      : size_(size),
        rows_(PoolAxis::forward(size.height, size.out_height, kernel[0], stride[0], padding[0])),
        columns_(PoolAxis::forward(size.width, size.out_width, kernel[1], stride[1], padding[1])),
        taps_(kernel[0] * kernel[1]) {}

  // row(h): the input's line h of the image at hand.
  template <typename F>
  void line(int64_t i, T* out, uint8_t* index, F row) const {
    std::vector<const T*> lines, pixels(taps_);
    std::vector<uint8_t> which(taps_);
    std::vector<float> scratch(4 * size_.channels);
    for (const auto* tap = rows_.begin(i); tap != rows_.end(i); ++tap) {
      lines.push_back(row(tap->position));
    }
    for (int64_t j = 0; j < size_.out_width; ++j) {
      int64_t count = 0, n = 0;
      for (const auto* tap = rows_.begin(i); tap != rows_.end(i); ++tap, ++n) {
        for (const auto* other = columns_.begin(j); other != columns_.end(j); ++other) {
          pixels[count] = lines[n] + other->position * size_.channels;
          which[count++] = static_cast<uint8_t>(tap->place * size_.kernel_width + other->place);
        }
      }
      kernels<T>().max_window(pixels.data(), which.data(), count, size_.channels,
                              out + j * size_.channels, index + j * size_.channels,
                              scratch.data());
    }
  }

 private:
  PoolSize size_;
  PoolAxis rows_, columns_;
  int64_t taps_;
};

// Computes lines of the gradient of a pooling's input.
template <typename T>
class PoolBackward {
 public:
  PoolBackward(const PoolSize& size, at::IntArrayRef kernel, at::IntArrayRef stride,
               at::IntArrayRef padding)
      : size_(size),
        rows_(PoolAxis::backward(size.height, size.out_height, kernel[0], stride[0], padding[0])),
        columns_(PoolAxis::backward(size.width, size.out_width, kernel[1], stride[1], padding[1])),
        taps_(kernel[0] * kernel[1]) {}

  void line(const T* dout, const uint8_t* index, int64_t image, int64_t h, T* dx) const {
    std::vector<const T*> gradients(taps_);
    std::vector<const uint8_t*> indices(taps_);
    std::vector<uint8_t> which(taps_);
    std::vector<float> sum(size_.channels);
    for (int64_t w = 0; w < size_.width; ++w) {
      int64_t count = 0;
      for (const auto* tap = rows_.begin(h); tap != rows_.end(h); ++tap) {
        for (const auto* other = columns_.begin(w); other != columns_.end(w); ++other) {
          const int64_t from =
              ((image * size_.out_height + tap->position) * size_.out_width + other->position) *
              size_.channels;
          gradients[count] = dout + from;
          indices[count] = index + from;
          which[count++] = static_cast<uint8_t>(tap->place * size_.kernel_width + other->place);
        }
      }
      kernels<T>().max_gradient(gradients.data(), indices.data(), which.data(), count,
                                size_.channels, dx + w * size_.channels, sum.data());
    }
  }

 private:
  PoolSize size_;
  PoolAxis rows_, columns_;
  int64_t taps_;
};

}  // namespace fastres
