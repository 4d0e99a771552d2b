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

#if defined(FASTRES_PAIRS)
// Sixteen values as bf16. A product takes subnormal numbers for zero, as this instruction does;
// otherwise it rounds as bf16_bits.
inline __m256i convert(const float* p) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(p)));
}
inline void store_units(bf16* units, const float* a, __mmask16 mask) {
  _mm256_mask_storeu_epi16(units, mask, convert(a));
}
inline void store_units(uint32_t* units, const float* a, const float* b, __mmask16 mask) {
  const __m512i low = _mm512_cvtepu16_epi32(convert(a));
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(convert(b)), 16);
  _mm512_mask_storeu_epi32(units, mask, _mm512_or_si512(low, high));
}
inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count < 16 ? (1u << count) - 1 : 0xffffu);
}
#endif

// Where the units of an operand go: rows of fp32 or bf16, or rows of pairs that join two rows.
template <typename T, bool PAIRS>
struct Writer {
  Order order;
  int64_t ld, channels;
  void* to;
  float* sums;  // [channels] of what is written, before rounding; may be null
  int64_t end;  // columns from `channels` up to here become zero

  // The columns from `first` on.
  Writer columns(int64_t first, int64_t count, int64_t zeros) const {
    Writer part = *this;
    const int64_t size = PAIRS && order == Order::rows ? 2 : 4;
    part.to = static_cast<char*>(to) + first * size;
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
    if constexpr (!PAIRS) {
      for (int64_t r = 0; r < rows; ++r) {
        float* __restrict units = static_cast<float*>(to) + r * ld;
        const auto value = row(r);
        each_value<SUMS>([&](int64_t c, float v) { units[c] = rounded(v, static_cast<T*>(to)); },
                         value);
        for (int64_t c = channels; c < end; ++c) units[c] = 0.0f;
      }
    } else if (order == Order::rows) {
      for (int64_t r = 0; r < rows; ++r) {
        bf16* const units = static_cast<bf16*>(to) + r * ld;
        one_row<SUMS>(units, row(r));
        for (int64_t c = channels; c < end; ++c) units[c] = bf16{};
      }
    } else {
      for (int64_t r = 0; r < rows; r += 2) {
        uint32_t* const units = static_cast<uint32_t*>(to) + r / 2 * ld;
        const auto value = row(r);
        if (r + 1 < rows) {
          pair_of_rows<SUMS>(units, value, row(r + 1));
        } else {
          pair_of_rows<SUMS>(units, value, [](int64_t) { return 0.0f; });
        }
        for (int64_t c = channels; c < end; ++c) units[c] = 0;
      }
    }
  }

  template <bool SUMS, typename S, typename F>
  void each_value(S put, F value) const {
    float* __restrict total = sums;
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c) {
      const float v = value(c);
      if constexpr (SUMS) total[c] += v;
      put(c, v);
    }
  }

#if defined(FASTRES_PAIRS)
  // Values are worked out a few vectors at a time, then rounded by an instruction of its own.
  static constexpr int64_t kAtOnce = 64;

  template <bool SUMS, typename F>
  void one_row(bf16* units, F value) const {
    float a[kAtOnce] = {};
    for (int64_t c = 0; c < channels; c += kAtOnce) {
      const int64_t count = fill<SUMS>(a, c, value);
      for (int64_t i = 0; i < count; i += 16) {
        store_units(units + c + i, a + i, first_lanes(count - i));
      }
    }
  }

  template <bool SUMS, typename F, typename G>
  void pair_of_rows(uint32_t* units, F first, G second) const {
    float a[kAtOnce] = {}, b[kAtOnce] = {};
    for (int64_t c = 0; c < channels; c += kAtOnce) {
      const int64_t count = fill<SUMS>(a, c, first);
      fill<SUMS>(b, c, second);
      for (int64_t i = 0; i < count; i += 16) {
        store_units(units + c + i, a + i, b + i, first_lanes(count - i));
      }
    }
  }

  template <bool SUMS, typename F>
  int64_t fill(float* __restrict values, int64_t from, F value) const {
    const int64_t count = channels - from < kAtOnce ? channels - from : kAtOnce;
    float* __restrict total = sums + (SUMS ? from : 0);
    const auto one = [&](int64_t c) {
      const float v = value(from + c);
      if constexpr (SUMS) total[c] += v;
      values[c] = v;
    };
    if (count == kAtOnce) {
#pragma GCC ivdep
      for (int64_t c = 0; c < kAtOnce; ++c) one(c);
    } else {
#pragma GCC ivdep
      for (int64_t c = 0; c < count; ++c) one(c);
    }
    return count;
  }
#endif
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

template <typename T, bool PAIRS>
void pack_bn(const Operand<T>& o, int64_t first, int64_t rows, const Writer<T, PAIRS>& writer) {
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

template <typename T, bool PAIRS>
void pack_masked(const Operand<T>& o, int64_t first, int64_t rows,
                 const Writer<T, PAIRS>& writer) {
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

template <typename T, Mask MASK, bool PAIRS>
void pack_dy_mask(const Operand<T>& o, int64_t first, int64_t rows,
                  const Writer<T, PAIRS>& writer) {
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

template <typename T, bool PAIRS>
void pack_patches(const Operand<T>& o, int64_t first, int64_t rows,
                  const Writer<T, PAIRS>& writer) {
  const PatchesOf<T>& p = o.patches;
  for (int64_t done = 0; done < o.channels;) {
    const int64_t place = (p.column + done) / p.channels;
    const int64_t channel = p.column + done - place * p.channels;
    const int64_t left = o.channels - done;
    const int64_t count = left < p.channels - channel ? left : p.channels - channel;
    const int64_t down = place / p.kernel_w * p.dilation_h - p.padding_h;
    const int64_t across = place % p.kernel_w * p.dilation_w - p.padding_w;
    // the pixel at hand: rows come one after the other
    int64_t line = first / p.width_out, wide = first - line * p.width_out;
    int64_t image = line / p.height_out, high = line - image * p.height_out;
    const bool last = done + count == o.channels;
    writer.columns(done, count, last ? writer.end - o.channels : 0).write(rows, [&](int64_t) {
      const int64_t h = high * p.stride_h + down, w = wide * p.stride_w + across;
      const bool inside = h >= 0 && h < p.height && w >= 0 && w < p.width;
      const T* const from =
          inside ? p.base + ((image * p.height + h) * p.width + w) * p.channels : p.zeros;
      if (++wide == p.width_out) {
        wide = 0;
        if (++high == p.height_out) {
          high = 0;
          ++image;
        }
      }
      return [x = from + channel](int64_t c) { return load(x, c); };
    });
    done += count;
  }
}

template <typename T, bool PAIRS>
void pack(const Operand<T>& o, int64_t first, int64_t rows, Order order, int64_t ld, void* to,
          float* sums) {
  const Writer<T, PAIRS> writer{order, ld, o.channels, to, sums, ld};
  if (o.patches.base != nullptr) {
    pack_patches<T, PAIRS>(o, first, rows, writer);
  } else if (o.gradient.a != nullptr) {
    const auto run = o.out != nullptr ? &pack_dy_mask<T, Mask::out, PAIRS>
                     : o.relu         ? &pack_dy_mask<T, Mask::again, PAIRS>
                                      : &pack_dy_mask<T, Mask::all, PAIRS>;
    run(o, first, rows, writer);
  } else if (o.dout != nullptr) {
    pack_masked<T, PAIRS>(o, first, rows, writer);
  } else {
    pack_bn<T, PAIRS>(o, first, rows, writer);
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
