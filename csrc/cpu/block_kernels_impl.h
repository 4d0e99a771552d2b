// The loops themselves. Included by block_kernels_*.cpp after pack_impl.h.

#if defined(FASTRES_PAIRS)
#include "columns_impl.h"
#include "pack_pairs_impl.h"
#include "joining_tile_impl.h"
#include "tile_rows_impl.h"
#endif

namespace fastres {
namespace {

template <typename UNIT, bool PAIRS>
void accumulate(const void* a_, int64_t lda, int64_t m, const void* b_, int64_t ldb, int64_t n,
                int64_t rows, float* c, int64_t ldc, int64_t below, bool onto) {
  const auto *a = static_cast<const float*>(a_), *b = static_cast<const float*>(b_);
  const int64_t depth = PAIRS ? (rows + 1) / 2 : rows;
  for (int64_t j = 0; j < n; j += kTileColumns) {
    each_tile(m, [&](int64_t i, int64_t count) {
      if (i >= j + kTileColumns + below) return;
      any_tile<UNIT, true>(count, a + i, lda, b + j, ldb, depth, c + i * ldc + j, ldc, onto);
    });
  }
}

// kLanes columns of a strip, or what is left of them, into sum [rows][kLanes].
inline void add_columns(const float* parts, int64_t ld, int64_t group_step, int64_t groups,
                        int64_t rows, int64_t columns, float* sum) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = parts + i * ld;
    if (columns == kLanes) {
      Vector total = load_vector(from);
      for (int64_t g = 1; g < groups; ++g) total = add(total, load_vector(from + g * group_step));
      store_vector(sum + i * kLanes, total);
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        float total = from[c];
        for (int64_t g = 1; g < groups; ++g) total += from[g * group_step + c];
        sum[i * kLanes + c] = total;
      }
    }
  }
}

inline void add_groups(const float* parts, int64_t ld, int64_t group_step, int64_t groups,
                       int64_t rows, int64_t columns, float* to, int64_t row_step,
                       int64_t column_step) {
  alignas(64) float sum[kStripRows * kLanes];
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int64_t width = columns - j < kLanes ? columns - j : kLanes;
    add_columns(parts + j, ld, group_step, groups, rows, width, sum);
    float* const corner = to + j * column_step;
    if (column_step == 1 && width == kLanes) {
      for (int64_t i = 0; i < rows; ++i) {
        store_vector(corner + i * row_step, load_vector(sum + i * kLanes));
      }
    } else if (rows == kStripRows && row_step == 1) {
      for (int64_t c = 0; c < width; ++c) {
        float* const line = corner + c * column_step;
        for (int64_t i = 0; i < kStripRows; ++i) line[i] = sum[i * kLanes + c];
      }
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = 0; c < width; ++c) {
          corner[i * row_step + c * column_step] = sum[i * kLanes + c];
        }
      }
    }
  }
}

// Where a column of tiles begins in a factor's weight, and a row of tiles in its units.
template <bool PAIRS>
struct Operands {
  explicit Operands(const Factor& f)
      : a(static_cast<const char*>(f.a)),
        b(static_cast<const float*>(f.b)),
        lda(PAIRS ? f.lda / 2 : f.lda),
        depth(PAIRS ? (f.depth + 1) / 2 : f.depth) {}

  template <typename UNIT>
  void product(int64_t row, int64_t rows, int64_t column, float* c, bool onto) const {
    any_tile<UNIT, false>(rows, reinterpret_cast<const float*>(a) + row * lda, lda,
                          b + column * depth, kTileColumns, depth, c, kTileColumns, onto);
  }

  const char* a;
  const float* b;
  int64_t lda, depth;
};

// fn(row, rows, column, columns) over the tiles of a panel. Weights that do not fit in the second
// cache beside the panel are walked once, else the panel is.
template <typename F>
void each_panel_tile(int64_t rows, int64_t columns, int64_t depth, F fn) {
  constexpr int64_t kShallow = 64;  // units of depth of which a tile's weights stay in L1
  if (depth <= kShallow) {
    for (int64_t column = 0; column < columns; column += kTileColumns) {
      const int64_t width = columns - column < kTileColumns ? columns - column : kTileColumns;
      each_tile(rows, [&](int64_t row, int64_t count) { fn(row, count, column, width); });
    }
    return;
  }
  constexpr int64_t kResident = int64_t{1} << 16;  // units of weights
  const int64_t fits = kResident / (depth < 1 ? 1 : depth) / kTileColumns * kTileColumns;
  const int64_t chunk = fits < kTileColumns ? kTileColumns : fits;
  for (int64_t from = 0; from < columns; from += chunk) {
    const int64_t to = from + chunk < columns ? from + chunk : columns;
    each_tile(rows, [&](int64_t row, int64_t count) {
      for (int64_t column = from; column < to; column += kTileColumns) {
        fn(row, count, column, to - column < kTileColumns ? to - column : kTileColumns);
      }
    });
  }
}

// Asks for a tile's place in an activation while its product is still computed.
template <typename T, bool WRITE = false>
inline void prefetch_tile(const T* p, int64_t rows, int64_t step, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < columns; j += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(p + r * step + j, WRITE ? 1 : 0);
    }
  }
}

// One row of a tile. Whole tiles have a number of columns that the compiler knows.
template <typename T, Residual KIND, bool RELU>
inline void expand_columns(const float* __restrict acc, const float* __restrict second,
                           int64_t columns, const float* __restrict scale,
                           const float* __restrict shift, const float* __restrict s_scale,
                           const float* __restrict s_shift, const T* __restrict shortcut,
                           T* __restrict out) {
  for (int64_t j = 0; j < columns; ++j) {
    float v = acc[j] * scale[j] + shift[j];
    if constexpr (KIND == Residual::identity) v += load(shortcut, j);
    if constexpr (KIND == Residual::affine) v += load(shortcut, j) * s_scale[j] + s_shift[j];
    if constexpr (KIND == Residual::product) v += second[j] * s_scale[j] + s_shift[j];
    if constexpr (RELU) v = v <= 0.0f ? 0.0f : v;
    store(out, j, v);
  }
}

template <typename T, Residual KIND, bool RELU>
void expand_row(const float* acc, const float* second, int64_t columns, const float* scale,
                const float* shift, const float* s_scale, const float* s_shift, const T* shortcut,
                T* out) {
  if (columns == kTileColumns) {
    expand_columns<T, KIND, RELU>(acc, second, kTileColumns, scale, shift, s_scale, s_shift,
                                  shortcut, out);
  } else {
    expand_columns<T, KIND, RELU>(acc, second, columns, scale, shift, s_scale, s_shift, shortcut,
                                  out);
  }
}

template <typename T, typename UNIT, bool PAIRS, Residual KIND, bool RELU>
void expand_kind(const ExpandPanel<T>& p) {
  const Operands<PAIRS> main(p.main), projection(p.projection);
  alignas(64) float sums[kTileRows * kTileColumns], second[kTileRows * kTileColumns];
  const int64_t depth = main.depth + (KIND == Residual::product ? projection.depth : 0);
  each_panel_tile(p.rows, p.columns, depth, [&](int64_t row, int64_t rows, int64_t column,
                                                int64_t columns) {
    if constexpr (KIND == Residual::identity || KIND == Residual::affine) {
      if (p.shortcut.dense() && p.shortcut.channels == p.columns) {
        prefetch_tile(p.shortcut.at(p.first + row) + column, rows, p.columns, columns);
      }
    }
    prefetch_tile<T, true>(p.out + (p.first + row) * p.columns + column, rows, p.columns,
                           columns);
    main.template product<UNIT>(row, rows, column, sums, false);
    if constexpr (KIND == Residual::product) {
      projection.template product<UNIT>(row, rows, column, second, false);
    }
#if defined(FASTRES_PAIRS)
    constexpr bool kReads = KIND == Residual::identity || KIND == Residual::affine;
    if (columns == kTileColumns && (!kReads || p.shortcut.channels >= column + columns)) {
      expand_tile<KIND, RELU>(
          sums, second, rows, p.scale + column, p.shift + column, p.s_scale + column,
          p.s_shift + column,
          [&](int64_t r) { return p.shortcut.at(p.first + row + r) + column; }, p.columns,
          p.out + (p.first + row) * p.columns + column);
      return;
    }
#endif
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = p.first + row + r;
      T* const out = p.out + at * p.columns + column;
      const float* const acc = sums + r * kTileColumns;
      if constexpr (KIND == Residual::none || KIND == Residual::product) {
        expand_row<T, KIND, RELU>(acc, second + r * kTileColumns, columns, p.scale + column,
                                  p.shift + column, p.s_scale + column, p.s_shift + column,
                                  nullptr, out);
      } else {
        // channels beyond the shortcut's own are zero in it
        const int64_t own = p.shortcut.channels - column;
        const int64_t with = own >= columns ? columns : own < 0 ? 0 : own;
        const T* const shortcut = p.shortcut.at(at) + column;
        expand_row<T, KIND, RELU>(acc, nullptr, with, p.scale + column, p.shift + column,
                                  p.s_scale + column, p.s_shift + column, shortcut, out);
        if (with < columns) {
          expand_row<T, Residual::none, RELU>(acc + with, nullptr, columns - with,
                                              p.scale + column + with, p.shift + column + with,
                                              nullptr, nullptr, nullptr, out + with);
        }
      }
    }
  });
}

template <typename T, typename UNIT, bool PAIRS, Residual KIND>
void expand_relu(const ExpandPanel<T>& p) {
  p.relu ? expand_kind<T, UNIT, PAIRS, KIND, true>(p) : expand_kind<T, UNIT, PAIRS, KIND, false>(p);
}

template <typename T, typename UNIT, bool PAIRS>
void expand(const ExpandPanel<T>& p) {
  switch (p.kind) {
    case Residual::none:
      return expand_relu<T, UNIT, PAIRS, Residual::none>(p);
    case Residual::identity:
      return expand_relu<T, UNIT, PAIRS, Residual::identity>(p);
    case Residual::affine:
      return expand_relu<T, UNIT, PAIRS, Residual::affine>(p);
    case Residual::product:
      return expand_relu<T, UNIT, PAIRS, Residual::product>(p);
  }
}

// dz of one row where the ReLU of y let through, with the sums of what is stored. `value` may be
// where dz goes. CONSTANT is no condition within the loop: that would become a load from null under
// an empty mask, which costs the processor hundreds of cycles.
template <typename T, typename V, bool CONSTANT>
inline void masked_columns(const V* value, const float* __restrict constant, int64_t columns,
                           const T* __restrict y, const float* __restrict mean,
                           const float* __restrict scale, const float* __restrict bias,
                           float* __restrict sum_g, float* __restrict sum_gd, T* out) {
#pragma GCC ivdep
  for (int64_t j = 0; j < columns; ++j) {
    const float d = load(y, j) - mean[j];
    const float dz = CONSTANT ? load(value, j) + constant[j] : load(value, j);
    const float v = rounded(d * scale[j] + bias[j] <= 0.0f ? 0.0f : dz, y);
    store(out, j, v);
    sum_g[j] += v;
    sum_gd[j] += v * d;
  }
}

template <typename T, typename UNIT, bool PAIRS>
void data(const DataPanel<T>& p) {
  const Operands<PAIRS> gradient(p.gradient), mixing(p.mixing);
  alignas(64) float sums[kTileRows * kTileColumns];
  const bool mixed = p.mixing.a != nullptr;
  const int64_t depth = gradient.depth + (mixed ? mixing.depth : 0);
  each_panel_tile(p.rows, p.columns, depth, [&](int64_t row, int64_t rows, int64_t column,
                                                int64_t columns) {
    const int64_t corner = (p.first + row) * p.columns + column;
    if (p.y != nullptr) prefetch_tile(p.y + corner, rows, p.columns, columns);
    prefetch_tile<T, true>(p.out + corner, rows, p.columns, columns);
    gradient.template product<UNIT>(row, rows, column, sums, false);
    if (mixed) mixing.template product<UNIT>(row, rows, column, sums, true);
    const float* const constant = p.constant == nullptr ? nullptr : p.constant + column;
#if defined(FASTRES_PAIRS)
    if (columns == kTileColumns) {
      if (p.branch.mean == nullptr) {
        data_tile<false>(sums, rows, constant, nullptr, {}, nullptr, nullptr, p.columns,
                         p.out + corner);
      } else {
        data_tile<true>(sums, rows, constant, p.y + corner,
                        {p.branch.mean + column, p.branch.scale + column, p.branch.bias + column},
                        p.sum_g + column, p.sum_gd + column, p.columns, p.out + corner);
      }
      return;
    }
#endif
    for (int64_t r = 0; r < rows; ++r) {
      const float* const acc = sums + r * kTileColumns;
      const int64_t at = (p.first + row + r) * p.columns + column;
      if (p.branch.mean == nullptr) {
        for (int64_t j = 0; j < columns; ++j) {
          store(p.out + at, j, constant == nullptr ? acc[j] : acc[j] + constant[j]);
        }
        continue;
      }
      const auto masked_row = constant == nullptr ? &masked_columns<T, float, false>
                                                  : &masked_columns<T, float, true>;
      const auto run = [&](int64_t width) {
        masked_row(acc, constant, width, p.y + at, p.branch.mean + column, p.branch.scale + column,
                   p.branch.bias + column, p.sum_g + column, p.sum_gd + column, p.out + at);
      };
      columns == kTileColumns ? run(kTileColumns) : run(columns);
    }
  });
}

template <typename T>
void mask_with_sums(const DataPanel<T>& p) {
#if defined(FASTRES_PAIRS)
  if (p.columns % kTileColumns == 0) {
    const int64_t at = p.first * p.columns;
    mask_rows(p.out + at, p.y + at, p.rows, p.columns, p.branch, p.sum_g, p.sum_gd);
    return;
  }
#endif
  for (int64_t row = p.first; row < p.first + p.rows; ++row) {
    const int64_t at = row * p.columns;
    prefetch(p.out, at, p.columns);
    prefetch(p.y, at, p.columns);
    masked_columns<T, T, false>(p.out + at, nullptr, p.columns, p.y + at, p.branch.mean,
                                p.branch.scale, p.branch.bias, p.sum_g, p.sum_gd, p.out + at);
  }
}

// The row of the residual that lands at row `at` of the gradient, or -1.
template <typename T>
int64_t residual_row(const InputPanel<T>& p, int64_t at) {
  if (p.stride_h == 1 && p.stride_w == 1) return at;
  const int64_t line = at / p.width, image = line / p.height;
  const int64_t h = line - image * p.height, w = at - line * p.width;
  if (h % p.stride_h != 0 || w % p.stride_w != 0) return -1;
  return (image * p.height_out + h / p.stride_h) * p.width_out + w / p.stride_w;
}

enum class Passed { nothing, all, masked };

// dx of one row: `value`, what the shortcut passes back, and the mask of x. `value` may be where
// dx goes.
template <typename T, typename V, bool MASK, Passed PASSED>
inline void input_columns(const V* value, int64_t columns, const T* __restrict x,
                          const T* __restrict residual, const T* __restrict residual_mask,
                          T* out) {
#pragma GCC ivdep
  for (int64_t j = 0; j < columns; ++j) {
    float v = load(value, j);
    if constexpr (PASSED == Passed::all) v += load(residual, j);
    if constexpr (PASSED == Passed::masked) {
      v += load(residual_mask, j) <= 0.0f ? 0.0f : load(residual, j);
    }
    if constexpr (MASK) v = load(x, j) <= 0.0f ? 0.0f : v;
    store(out, j, v);
  }
}

template <typename T, typename V, bool MASK>
inline void input_row(const InputPanel<T>& p, const V* value, int64_t row, int64_t column,
                      int64_t columns) {
  const int64_t at = row * p.columns + column;
  T* const out = p.out + at;
  const T* const x = MASK ? p.x + at : nullptr;
  const int64_t passed = p.residual == nullptr ? -1 : residual_row(p, row);
  const int64_t from = passed * p.residual_channels + column;
  const auto run = [&](int64_t width) {
    if (passed < 0) {
      input_columns<T, V, MASK, Passed::nothing>(value, width, x, nullptr, nullptr, out);
    } else if (p.residual_mask == nullptr) {
      input_columns<T, V, MASK, Passed::all>(value, width, x, p.residual + from, nullptr, out);
    } else {
      input_columns<T, V, MASK, Passed::masked>(value, width, x, p.residual + from,
                                                p.residual_mask + from, out);
    }
  };
  columns == kTileColumns ? run(kTileColumns) : run(columns);
}

template <typename T, typename UNIT, bool PAIRS, bool MASK>
void input_mask(const InputPanel<T>& p) {
  const Operands<PAIRS> main(p.main);
  alignas(64) float sums[kTileRows * kTileColumns];
  each_panel_tile(p.rows, p.columns, main.depth, [&](int64_t row, int64_t rows, int64_t column,
                                                     int64_t columns) {
    const int64_t corner = (p.first + row) * p.columns + column;
    if (MASK) prefetch_tile(p.x + corner, rows, p.columns, columns);
    if (p.residual != nullptr && p.stride_h == 1 && p.stride_w == 1) {
      const int64_t from = (p.first + row) * p.residual_channels + column;
      prefetch_tile(p.residual + from, rows, p.residual_channels, columns);
      if (p.residual_mask != nullptr) {
        prefetch_tile(p.residual_mask + from, rows, p.residual_channels, columns);
      }
    }
    prefetch_tile<T, true>(p.out + corner, rows, p.columns, columns);
    main.template product<UNIT>(row, rows, column, sums, false);
#if defined(FASTRES_PAIRS)
    if (columns == kTileColumns && p.stride_h == 1 && p.stride_w == 1) {
      const int64_t from = (p.first + row) * p.residual_channels + column;
      const T* const residual = p.residual == nullptr ? nullptr : p.residual + from;
      const T* const mask = p.residual_mask == nullptr ? nullptr : p.residual_mask + from;
      input_tile<MASK>(sums, rows, MASK ? p.x + corner : nullptr, residual, mask,
                       p.residual_channels, p.columns, p.out + corner);
      return;
    }
#endif
    for (int64_t r = 0; r < rows; ++r) {
      input_row<T, float, MASK>(p, sums + r * kTileColumns, p.first + row + r, column, columns);
    }
  });
}

template <typename T, typename UNIT, bool PAIRS>
void input(const InputPanel<T>& p) {
  p.x == nullptr ? input_mask<T, UNIT, PAIRS, false>(p) : input_mask<T, UNIT, PAIRS, true>(p);
}

template <typename T>
void finish_input(const InputPanel<T>& p) {
  for (int64_t row = p.first; row < p.first + p.rows; ++row) {
    const T* const value = p.out + row * p.columns;
    prefetch(value, 0, p.columns);
    p.x == nullptr ? input_row<T, T, false>(p, value, row, 0, p.columns)
                   : input_row<T, T, true>(p, value, row, 0, p.columns);
  }
}

template <typename T, typename UNIT, bool PAIRS>
constexpr BlockKernels<T> block_table() {
  return {PAIRS,
#if defined(FASTRES_PAIRS)
          &pack_pairs,
          &pack_weight_pairs,
#else
          &pack<T>,
          &pack_weight<T, PAIRS>,
#endif
          &accumulate<UNIT, PAIRS>,
#if defined(FASTRES_PAIRS)
          &accumulate_rows,
#else
          nullptr,
#endif
          &add_groups,
          &expand<T, UNIT, PAIRS>,
          &data<T, UNIT, PAIRS>,
          &input<T, UNIT, PAIRS>,
          &mask_with_sums<T>,
          &finish_input<T>};
}

}  // namespace
}  // namespace fastres
