// The loops themselves. Included by block_kernels_*.cpp after block_kernels_impl.h.

namespace fastres {
namespace {

template <typename T>
void widen(const T* from, int64_t rows, int64_t columns, float* to, int64_t ld) {
  const int64_t end = padded_columns(columns);
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict source = from + r * columns;
    float* __restrict row = to + r * ld;
    for (int64_t c = 0; c < columns; ++c) row[c] = load(source, c);
    for (int64_t c = columns; c < end; ++c) row[c] = 0.0f;
  }
}

template <typename T>
void narrow(const float* __restrict from, int64_t columns, T* __restrict to) {
  for (int64_t c = 0; c < columns; ++c) store(to, c, from[c]);
}

// In pairs; the values are lost.
template <int64_t COUNT>
inline float sum_of(float* __restrict values) {
#pragma GCC unroll 8
  for (int64_t half = COUNT / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) values[i] += values[half + i];
  }
  return values[0];
}

inline float dot(const float* x, const float* y, int64_t columns) {
  Vector even = zero(), odd = zero();
  for (int64_t c = 0; c < columns; c += kStep) {
    even = multiply_add(load_vector(x + c), load_vector(y + c), even);
    odd = multiply_add(load_vector(x + c + kLanes), load_vector(y + c + kLanes), odd);
  }
  alignas(64) float values[kLanes];
  store_vector(values, add(even, odd));
  return sum_of<kLanes>(values);
}

inline void scaled(float a, const float* __restrict x, int64_t columns, float* __restrict to) {
  for (int64_t c = 0; c < columns; ++c) to[c] = a * x[c];
}

inline void combined(float a, const float* __restrict x, float b, const float* __restrict y,
                     int64_t columns, float* __restrict to) {
  for (int64_t c = 0; c < columns; ++c) to[c] = a * x[c] + b * y[c];
}

inline void add_scaled(float a, const float* __restrict x, int64_t columns, float* __restrict to) {
  for (int64_t c = 0; c < columns; ++c) to[c] += a * x[c];
}

inline void forms(const MomentPanel& p, float* scratch, float* to) {
  alignas(64) float product[kTileRows * kTileColumns];
  for (int64_t i = 0; i < p.rows * kTileColumns; ++i) scratch[i] = 0.0f;
  each_panel_tile(p.rows, p.columns, p.columns, [&](int64_t row, int64_t rows, int64_t column,
                                                    int64_t width) {
    // what is below is zero
    any_tile<Single, false>(rows, p.x + row * p.ld, p.ld, p.packed + column * p.columns,
                            kTileColumns, column + width, product, kTileColumns, false);
    for (int64_t r = 0; r < rows; ++r) {
      const float* __restrict x = p.x + (row + r) * p.ld + column;
      const float* __restrict values = product + r * kTileColumns;
      float* __restrict sums = scratch + (row + r) * kTileColumns;
      for (int64_t c = 0; c < kTileColumns; ++c) sums[c] += values[c] * x[c];
    }
  });
  for (int64_t r = 0; r < p.rows; ++r) {
    to[r] = sum_of<kTileColumns>(scratch + r * kTileColumns);
  }
}

// One row of a tile. Whole tiles have a number of columns that the compiler knows.
inline void product_row(const float* __restrict product, int64_t columns,
                        const float* __restrict base, float a, float b, const float* __restrict y,
                        float* __restrict to) {
  for (int64_t c = 0; c < columns; ++c) to[c] = base[c] + a * product[c] + b * y[c];
}

inline void products(const MomentPanel& p, const float* base, const float* a, const float* b,
                     const float* y, float* to) {
  alignas(64) float product[kTileRows * kTileColumns];
  each_panel_tile(p.rows, p.columns, p.columns, [&](int64_t row, int64_t rows, int64_t column,
                                                    int64_t width) {
    prefetch_tile(base + row * p.columns + column, rows, p.columns, width);
    prefetch_tile<float, true>(to + row * p.columns + column, rows, p.columns, width);
    any_tile<Single, false>(rows, p.x + row * p.ld, p.ld, p.packed + column * p.columns,
                            kTileColumns, p.columns, product, kTileColumns, false);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (row + r) * p.columns + column;
      const auto run = [&](int64_t columns) __attribute__((always_inline)) {
        product_row(product + r * kTileColumns, columns, base + at, a[row + r], b[row + r],
                    y + column, to + at);
      };
      width == kTileColumns ? run(kTileColumns) : run(width);
    }
  });
}

template <typename T>
constexpr MomentKernels<T> moment_table() {
  return {&widen<T>, &narrow<T>, &dot, &scaled, &combined, &add_scaled, &forms, &products};
}

}  // namespace
}  // namespace fastres
