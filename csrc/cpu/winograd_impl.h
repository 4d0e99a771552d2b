// The transforms themselves. Included by block_kernels_*.cpp after block_kernels_impl.h.

namespace fastres {
namespace {

// B^T d along one axis.
inline void input_axis(const Vector* d, Vector* t, int stride) {
  t[0] = subtract(d[0], d[2 * stride]);
  t[stride] = add(d[stride], d[2 * stride]);
  t[2 * stride] = subtract(d[2 * stride], d[stride]);
  t[3 * stride] = subtract(d[stride], d[3 * stride]);
}

void winograd_input(const float* const* pixels, int64_t channels, float* v, int64_t step) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector d[16], t[16], u[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) d[i] = load_vector(pixels[i] + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) input_axis(d + i, t + i, 4);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) input_axis(t + 4 * i, u + 4 * i, 1);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store_vector(v + i * step + c, u[i]);
  }
}

void winograd_output(const float* m, int64_t step, int64_t channels, float* const* pixels) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector t[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float* const from = m + j * step + c;
      const Vector top = load_vector(from), bottom = load_vector(from + 12 * step);
      const Vector one = load_vector(from + 4 * step), two = load_vector(from + 8 * step);
      t[0][j] = add(add(top, one), two);
      t[1][j] = subtract(subtract(one, two), bottom);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      store_vector(pixels[2 * i] + c, add(add(t[i][0], t[i][1]), t[i][2]));
      store_vector(pixels[2 * i + 1] + c, subtract(subtract(t[i][1], t[i][2]), t[i][3]));
    }
  }
}

// A g along one axis.
inline void gradient_axis(Vector first, Vector second, Vector* t, int stride) {
  t[0] = first;
  t[stride] = add(first, second);
  t[2 * stride] = subtract(first, second);
  t[3 * stride] = subtract(zero(), second);
}

void winograd_gradient(const float* const* pixels, int64_t channels, float* m, int64_t step) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector t[8], u[16];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      gradient_axis(load_vector(pixels[j] + c), load_vector(pixels[2 + j] + c), t + j, 2);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) gradient_axis(t[2 * i], t[2 * i + 1], u + 4 * i, 1);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store_vector(m + i * step + c, u[i]);
  }
}

constexpr int64_t kFilterRows = 16;

void winograd_weight(const float* taps, int64_t depth_stride, int64_t column_stride, int64_t depth,
                     int64_t columns, bool flip, float* u, int64_t step) {
  alignas(64) float block[kFilterRows][9][kTileColumns] = {};
  const float half_value = 0.5f;
  const Vector half = repeat(&half_value);
  for (int64_t from = 0; from < depth; from += kFilterRows) {
    const int64_t deep = depth - from < kFilterRows ? depth - from : kFilterRows;
    // along what is contiguous
    const auto gather = [&](int64_t k, int64_t j) {
      const float* const g = taps + (from + k) * depth_stride + j * column_stride;
      for (int t = 0; t < 9; ++t) block[k][flip ? 8 - t : t][j] = g[t];
    };
    if (depth_stride < column_stride) {
      for (int64_t j = 0; j < columns; ++j) {
        // the next rows of this column: too short a piece for the processor to foresee
        const float* const next = taps + (from + kFilterRows) * depth_stride + j * column_stride;
        for (int64_t t = 0; t < 9 * kFilterRows; t += 16) __builtin_prefetch(next + t);
        for (int64_t k = 0; k < deep; ++k) gather(k, j);
      }
    } else {
      for (int64_t k = 0; k < deep; ++k) {
        const float* const next = taps + (from + kFilterRows + k) * depth_stride;
        for (int64_t t = 0; t < 9 * columns; t += 16) __builtin_prefetch(next + t);
        for (int64_t j = 0; j < columns; ++j) gather(k, j);
      }
    }
    for (int64_t k = 0; k < deep; ++k) {
      float* const to = u + (from + k) * kTileColumns;
      for (int64_t j = 0; j < kTileColumns; j += kLanes) {
        Vector t[12], w[16];
        const auto axis = [&](Vector a, Vector b, Vector c, Vector* r, int stride) {
          const Vector ends = multiply(half, add(a, c)), middle = multiply(half, b);
          r[0] = a;
          r[stride] = add(ends, middle);
          r[2 * stride] = subtract(ends, middle);
          r[3 * stride] = c;
        };
        for (int i = 0; i < 3; ++i) {
          axis(load_vector(&block[k][i][j]), load_vector(&block[k][3 + i][j]),
               load_vector(&block[k][6 + i][j]), t + i, 3);
        }
        for (int i = 0; i < 4; ++i) axis(t[3 * i], t[3 * i + 1], t[3 * i + 2], w + 4 * i, 1);
        for (int i = 0; i < 16; ++i) store_vector(to + i * step + j, w[i]);
      }
    }
  }
}

void winograd_weight_gradient(const float* u, int64_t u_stride, int64_t step, int64_t groups,
                              int64_t group_step, int64_t rows, int64_t columns, float* taps,
                              int64_t column_stride) {
  alignas(64) float block[kFilterRows][9][kTileColumns];
  const float half_value = 0.5f;
  const Vector half = repeat(&half_value);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < kTileColumns; j += kLanes) {
      Vector s[16], t[12];
      for (int i = 0; i < 16; ++i) {
        const float* const from = u + r * u_stride + i * step + j;
        s[i] = load_vector(from);
        for (int64_t g = 1; g < groups; ++g) s[i] = add(s[i], load_vector(from + g * group_step));
      }
      // G^T along one axis of four
      const auto axis = [&](Vector a, Vector b, Vector c, Vector d, Vector* r, int stride) {
        const Vector both = multiply(half, add(b, c));
        r[0] = add(a, both);
        r[stride] = multiply(half, subtract(b, c));
        r[2 * stride] = add(both, d);
      };
      for (int i = 0; i < 4; ++i) axis(s[i], s[4 + i], s[8 + i], s[12 + i], t + i, 4);
      for (int i = 0; i < 3; ++i) {
        Vector w[3];
        axis(t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3], w, 1);
        for (int k = 0; k < 3; ++k) store_vector(&block[r][3 * i + k][j], w[k]);
      }
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    float* const to = taps + j * column_stride;
    for (int64_t r = 0; r < rows; ++r) {
      for (int t = 0; t < 9; ++t) to[9 * r + t] = block[r][t][j];
    }
  }
}

void winograd_product(const float* a, int64_t lda, int64_t rows, int64_t depth, const float* b,
                      int64_t columns, float* c, int64_t ldc) {
  each_panel_tile(rows, columns, depth, [&](int64_t row, int64_t count, int64_t column, int64_t) {
    any_tile<Single, false>(count, a + row * lda, lda, b + column * depth, kTileColumns, depth,
                            c + row * ldc + column, ldc, false);
  });
}

constexpr WinogradKernels winograd_table() {
  return {&winograd_input,  &winograd_output,          &winograd_gradient,
          &winograd_weight, &winograd_weight_gradient, &winograd_product};
}

}  // namespace
}  // namespace fastres
