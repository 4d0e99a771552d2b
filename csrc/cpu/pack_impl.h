// Operands of products as units. Included by block_kernels_*.cpp after gemm_impl.h and
// kernels_impl.h.

namespace fastres {
namespace {

// bf16, rounded to nearest even, in the upper half; NaN stays NaN. As `store`, without memory.
inline uint32_t bf16_bits(float v) {
  const uint32_t u = __builtin_bit_cast(uint32_t, v);
  const uint32_t even = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
  return v != v ? (u & 0xffff0000u) | 0x400000u : even;
}

inline float rounded(float v, const float*) { return v; }
inline float rounded(float v, const bf16*) { return __builtin_bit_cast(float, bf16_bits(v)); }

// Where the units of an operand go: rows of fp32, in either order.
template <typename T>
struct Writer {
  int64_t ld, channels;
  float* to;
  float* sums;  // [channels] of what is written, before rounding; may be null
  int64_t end;  // columns from `channels` up to here become zero

  // The columns from `first` on.
  Writer columns(int64_t first, int64_t count, int64_t zeros) const {
    Writer part = *this;
    part.to = to + first;
    part.channels = count;
    part.end = count + zeros;
    return part;
  }

  // row(r) gives a function of the column.
  template <typename F>
  void write(int64_t rows, F row) const {
    sums == nullptr ? write_rows<false>(rows, row) : write_rows<true>(rows, row);
  }

 private:
  template <bool SUMS, typename F>
  void write_rows(int64_t rows, F row) const {
    for (int64_t r = 0; r < rows; ++r) {
      float* __restrict units = to + r * ld;
      float* __restrict total = sums;
      const auto value = row(r);
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) {
        const float v = value(c);
        if constexpr (SUMS) total[c] += v;
        units[c] = rounded(v, static_cast<const T*>(nullptr));
      }
      for (int64_t c = channels; c < end; ++c) units[c] = 0.0f;
    }
  }
};

// Rows from the one at hand to the one to ask for: about 2 KiB ahead.
template <typename T>
inline int64_t rows_ahead(int64_t channels) {
  return 1 + 2048 / static_cast<int64_t>(sizeof(T)) / (channels < 1 ? 1 : channels);
}

// Asks for a row of `channels`.
template <typename T>
inline void prefetch_row(const T* p, int64_t channels) {
  for (int64_t c = 0; c < channels; c += 64 / static_cast<int64_t>(sizeof(T))) {
    __builtin_prefetch(p + c);
  }
}

template <typename T>
void pack_bn(const Operand<T>& o, int64_t first, int64_t rows, const Writer<T>& writer) {
  const float* const mean = o.branch.mean;
  const float* const scale = o.branch.scale;
  const float* const bias = o.branch.bias;
  const float* const pivot = o.pivot;
  const int64_t ahead = o.y.dense() ? rows_ahead<T>(o.channels) * o.y.channels : 0;
  const auto row = [&](int64_t r) {
    const T* const y = o.y.at(first + r);
    prefetch_row(y + ahead, o.channels);
    return y;
  };
  const auto z = [=](const T* y, int64_t c) {  // rounded where it is written
    const float v = (load(y, c) - mean[c]) * scale[c] + bias[c];
    return v <= 0.0f ? 0.0f : v;
  };
  if (mean != nullptr && pivot != nullptr) {
    writer.write(rows, [&](int64_t r) {
      return [=, y = row(r)](int64_t c) { return rounded(z(y, c), y) - pivot[c]; };
    });
  } else if (mean != nullptr) {
    writer.write(rows, [&](int64_t r) { return [=, y = row(r)](int64_t c) { return z(y, c); }; });
  } else if (pivot != nullptr) {
    writer.write(rows, [&](int64_t r) {
      return [=, y = row(r)](int64_t c) { return load(y, c) - pivot[c]; };
    });
  } else {
    writer.write(rows, [&](int64_t r) {
      return [y = row(r)](int64_t c) { return load(y, c); };
    });
  }
}

template <typename T>
void pack_masked(const Operand<T>& o, int64_t first, int64_t rows, const Writer<T>& writer) {
  const int64_t ahead = rows_ahead<T>(o.channels) * o.step;
  const auto row = [&](const T* from, int64_t r) {
    const T* const p = from + (first + r) * o.step;
    prefetch_row(p + ahead, o.channels);
    return p;
  };
  if (o.out == nullptr) {
    writer.write(rows, [&](int64_t r) {
      return [g = row(o.dout, r)](int64_t c) { return load(g, c); };
    });
  } else {
    writer.write(rows, [&](int64_t r) {
      return [g = row(o.dout, r), out = row(o.out, r)](int64_t c) {
        return load(out, c) <= 0.0f ? 0.0f : load(g, c);
      };
    });
  }
}

template <typename T, Mask MASK>
void pack_dy_mask(const Operand<T>& o, int64_t first, int64_t rows, const Writer<T>& writer) {
  const float* const mean = o.branch.mean;
  const float* const scale = o.branch.scale;
  const float* const bias = o.branch.bias;
  const float* const a = o.gradient.a;
  const float* const b = o.gradient.b;
  const float* const shift = o.gradient.c;
  const int64_t ahead = rows_ahead<T>(o.channels) * o.step;
  const auto row = [&](const T* from, int64_t r) {
    const T* const p = from + (first + r) * o.step;
    prefetch_row(p + ahead, o.channels);
    return p;
  };
  const auto out_row = [&](int64_t r) { return MASK == Mask::out ? row(o.out, r) : nullptr; };
  const auto gradient = [=](const T* g, const T* out, int64_t c, float d) {
    return masked<T, MASK>(g, out, c, d, scale[c], bias[c]);
  };
  if (b == nullptr) {
    writer.write(rows, [&](int64_t r) {
      return [=, y = row(o.y.base, r), g = row(o.dout, r), out = out_row(r)](int64_t c) {
        return a[c] * gradient(g, out, c, load(y, c) - mean[c]);
      };
    });
  } else {
    writer.write(rows, [&](int64_t r) {
      return [=, y = row(o.y.base, r), g = row(o.dout, r), out = out_row(r)](int64_t c) {
        const float d = load(y, c) - mean[c];
        return a[c] * gradient(g, out, c, d) + (b[c] * d + shift[c]);
      };
    });
  }
}

// The pixels that one place of a kernel meets, row by row of the patches.
template <typename T>
class PatchRows {
 public:
  // From `column` on: the place of the kernel there and the channel within it.
  PatchRows(const PatchesOf<T>& patches, int64_t column, int64_t first) : p_(patches) {
    const int64_t place = column / p_.channels, line = first / p_.width_out;
    channel_ = column - place * p_.channels;
    down_ = place / p_.kernel_w * p_.dilation_h - p_.padding_h;
    across_ = place % p_.kernel_w * p_.dilation_w - p_.padding_w;
    wide_ = first - line * p_.width_out;
    image_ = line / p_.height_out;
    high_ = line - image_ * p_.height_out;
  }

  // Channels left at this place.
  int64_t count() const { return p_.channels - channel_; }

  const T* next() {
    const int64_t h = high_ * p_.stride_h + down_, w = wide_ * p_.stride_w + across_;
    const bool inside = h >= 0 && h < p_.height && w >= 0 && w < p_.width;
    const T* const from =
        inside ? p_.base + ((image_ * p_.height + h) * p_.width + w) * p_.channels : p_.zeros;
    if (inside) prefetch_row(from + channel_ + kPixelsAhead * p_.stride_w * p_.channels, count());
    if (++wide_ == p_.width_out) {
      wide_ = 0;
      if (++high_ == p_.height_out) {
        high_ = 0;
        ++image_;
      }
    }
    return from + channel_;
  }

 private:
  static constexpr int64_t kPixelsAhead = 8;

  PatchesOf<T> p_;
  int64_t channel_, down_, across_, wide_, high_, image_;
};

template <typename T>
void pack_patches(const Operand<T>& o, int64_t first, int64_t rows, const Writer<T>& writer) {
  for (int64_t done = 0; done < o.channels;) {
    PatchRows<T> pixels(o.patches, o.patches.column + done, first);
    const int64_t left = o.channels - done;
    const int64_t count = left < pixels.count() ? left : pixels.count();
    const bool last = count == left;
    writer.columns(done, count, last ? writer.end - o.channels : 0).write(rows, [&](int64_t) {
      return [x = pixels.next()](int64_t c) { return load(x, c); };
    });
    done += count;
  }
}

template <typename T>
void pack(const Operand<T>& o, int64_t first, int64_t rows, Order, int64_t ld, void* to,
          float* sums) {
  const Writer<T> writer{ld, o.channels, static_cast<float*>(to), sums, ld};
  if (o.patches.base != nullptr) {
    pack_patches<T>(o, first, rows, writer);
  } else if (o.gradient.a != nullptr) {
    const auto run = o.out != nullptr ? &pack_dy_mask<T, Mask::out>
                     : o.relu         ? &pack_dy_mask<T, Mask::again>
                                      : &pack_dy_mask<T, Mask::all>;
    run(o, first, rows, writer);
  } else if (o.dout != nullptr) {
    pack_masked<T>(o, first, rows, writer);
  } else {
    pack_bn<T>(o, first, rows, writer);
  }
}

// [columns / 32][depth in units][32]: the order in which tiles read it. Walks what is contiguous in
// the matrix, a few lines at a time.
template <typename T, bool PAIRS>
void pack_weight(const float* matrix, int64_t depth_stride, int64_t column_stride, int64_t depth,
                 int64_t columns, void* to) {
  constexpr int64_t kDepth = 16;
  const int64_t whole = columns < kTileColumns ? columns : kTileColumns;
  for (int64_t from = 0; from < depth; from += kDepth) {
    float block[kDepth * kTileColumns] = {};
    const float* __restrict source = matrix + from * depth_stride;
    const int64_t deep = depth - from < kDepth ? depth - from : kDepth;
    if (column_stride == 1) {
      for (int64_t k = 0; k < deep; ++k) {
        for (int64_t j = 0; j < whole; ++j) {
          block[k * kTileColumns + j] = source[k * depth_stride + j];
        }
      }
    } else {
      for (int64_t j = 0; j < whole; ++j) {
        for (int64_t k = 0; k < deep; ++k) {
          block[k * kTileColumns + j] = source[k * depth_stride + j * column_stride];
        }
      }
    }
    if constexpr (PAIRS) {
      uint32_t* __restrict units = static_cast<uint32_t*>(to) + from / 2 * kTileColumns;
      for (int64_t k = 0; k < deep; k += 2) {
        const float* __restrict even = block + k * kTileColumns;
        for (int64_t j = 0; j < kTileColumns; ++j) {
          units[k / 2 * kTileColumns + j] =
              bf16_bits(even[j]) >> 16 | bf16_bits(even[kTileColumns + j]);
        }
      }
    } else {
      float* __restrict units = static_cast<float*>(to) + from * kTileColumns;
      for (int64_t i = 0; i < deep * kTileColumns; ++i) {
        units[i] = rounded(block[i], static_cast<T*>(nullptr));
      }
    }
  }
}

}  // namespace
}  // namespace fastres
