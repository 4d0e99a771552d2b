// What follows from the moments of a bottleneck's z and from weights alone: no activation is read.

#include "block_rows.h"
#include "moment_kernels.h"

namespace fastres {
namespace {

using at::Tensor;

constexpr int64_t kRowsOfWeight = 64;  // that are taken at once

Tensor empty_matrix(int64_t rows, int64_t columns, const Tensor& like) {
  return at::empty({rows, columns}, like.options().dtype(at::kFloat));
}

// W [N, K] as its product with y uses it.
Tensor matrix_of(const Tensor& conv_weight, const Tensor& y) {
  return conv_weight.flatten(1).to(y.scalar_type()).contiguous();
}

Tensor float_matrix(const Tensor& matrix) { return matrix.to(at::kFloat).contiguous(); }

float* floats(Tensor& t) { return mutable_data<float>(t); }

// The BN's scale.
std::vector<float> scale_of(const Tensor& invstd, const OptionalTensor& weight, int64_t length) {
  std::vector<float> scale = padded_vector(invstd, length);
  if (weight.has_value()) {
    const std::vector<float> gamma = padded_vector(weight, length);
    for (int64_t n = 0; n < length; ++n) scale[n] *= gamma[n];
  }
  return scale;
}

std::vector<float> sum_of(const std::vector<float>& x, const std::vector<float>& y) {
  std::vector<float> sum(x.size());
  for (size_t i = 0; i < x.size(); ++i) sum[i] = x[i] + y[i];
  return sum;
}

// The length in memory of a row of W in fp32.
int64_t row_of(int64_t inner) { return staggered(padded_columns(inner)); }

// Rows of W; the split depends on its shape alone.
Panels panels_of(int64_t outer, int64_t inner) {
  return Panels(outer, 4 * row_of(inner), kPanelBytes, kRowsOfWeight);
}

int64_t strips_of(int64_t rows) { return (rows + kStripRows - 1) / kStripRows; }

// The covariance, and what `MomentKernels::forms` takes of it.
void covariance_of(const Tensor& gram_, float share, const std::vector<float>& m, Tensor& to,
                   float* packed) {
  const Tensor gram = float_matrix(gram_);
  const int64_t columns = gram.size(1);
  float* const covariance = floats(to);
  in_turns(strips_of(columns), [&](int64_t strip) {
    const int64_t first = strip * kStripRows, last = std::min(first + kStripRows, columns);
    std::vector<float> twice(m.size(), 0.0f);
    for (int64_t k = first; k < last; ++k) {
      float* const row = covariance + k * columns;
      moment_kernels<float>().combined(share, data<float>(gram) + k * columns, -m[k], m.data(),
                                       columns, row);
      for (int64_t c = k; c < columns; ++c) twice[c] = c == k ? row[c] : 2.0f * row[c];
      for (int64_t c = k / kTileColumns * kTileColumns; c < columns; c += kTileColumns) {
        std::copy_n(twice.data() + c, kTileColumns, packed + c * columns + k * kTileColumns);
      }
      twice[k] = 0.0f;
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> moment_statistics(
    const Tensor& y, const Tensor& conv_weight, const Tensor& s, const Tensor& gram,
    const Tensor& pivot, const OptionalTensor& weight, const OptionalTensor& bias, int64_t rows,
    double eps) {
  const PoolScope pool;
  const int64_t outer = conv_weight.size(0), inner = conv_weight.size(1);
  const Tensor matrix = matrix_of(conv_weight, y);
  const float share = static_cast<float>(1.0 / static_cast<double>(std::max<int64_t>(rows, 1)));
  std::vector<float> m = padded_vector(s, inner);
  for (float& value : m) value *= share;
  const std::vector<float> centre = sum_of(padded_vector(pivot, inner), m),
                           gamma = padded_vector(weight, outer), beta = padded_vector(bias, outer);
  Tensor offset = empty_vector(inner, y), covariance = empty_matrix(inner, inner, y);
  std::copy_n(m.data(), inner, floats(offset));
  Shared packed(4 * inner * padded_columns(inner));
  covariance_of(gram, share, m, covariance, packed.floats());
  Tensor vectors[5];
  for (Tensor& vector : vectors) vector = empty_vector(outer, y);
  float *const mean = floats(vectors[0]), *const var = floats(vectors[1]),
               *const invstd = floats(vectors[2]), *const scale = floats(vectors[3]),
               *const shift = floats(vectors[4]);
  const int64_t ld = row_of(inner);
  const Panels panels = panels_of(outer, inner);
  Scratch scratch(4 * panels.most() * (ld + kTileColumns));
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    constexpr bool kExact = std::is_same_v<T, float>;
    const MomentKernels<T>& kernel = moment_kernels<T>();
    in_turns(panels.count(), [&](int64_t p) {
      const int64_t first = panels.first(p), count = panels.rows(p);
      float* const x = reinterpret_cast<float*>(scratch.mine());
      kernel.widen(data<T>(matrix) + first * inner, count, inner, x, ld);
      kernel.forms({x, ld, count, inner, packed.floats()}, x + panels.most() * ld, var + first);
      for (int64_t n = first; n < first + count; ++n) {
        const float* const row = x + (n - first) * ld;
        mean[n] = rows == 0 ? 0.0f : kernel.dot(row, centre.data(), inner);
        // what (z - pivot) W^T, or z W^T, is more than y - mean
        const float level = kExact ? kernel.dot(row, m.data(), inner) : mean[n];
        var[n] = var[n] < 0.0f ? 0.0f : var[n];  // NaN stays
        invstd[n] = 1.0f / std::sqrt(var[n] + static_cast<float>(eps));
        scale[n] = weight.has_value() ? invstd[n] * gamma[n] : invstd[n];
        shift[n] = beta[n] - level * scale[n];
      }
    });
  });
  return {offset, covariance, vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]};
}

namespace {

// Some columns of a matrix [rows, columns] as rows, with zeros behind their last value.
void transpose(const float* from, int64_t rows, int64_t columns, int64_t first, int64_t count,
               float* to, int64_t ld) {
  for (int64_t k = 0; k < rows; k += kStripRows) {
    block_kernels<float>().add_groups(from + k * columns + first, columns, 0, 1,
                                      std::min(kStripRows, rows - k), count, to + k, 1, ld);
  }
  const int64_t end = padded_columns(rows);
  for (int64_t r = 0; r < count; ++r) std::fill(to + r * ld + rows, to + r * ld + end, 0.0f);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> moment_gradients(
    const Tensor& y, const Tensor& conv_weight, const Tensor& product_, const Tensor& sum_g_,
    const OptionalTensor& weight, const Tensor& mean_, const Tensor& invstd_, const Tensor& pivot_,
    const OptionalTensor& offset_, const OptionalTensor& shift_) {
  const PoolScope pool;
  const int64_t outer = conv_weight.size(0), inner = conv_weight.size(1);
  const bool frozen = !offset_.has_value();
  const Tensor matrix = matrix_of(conv_weight, y), product = float_matrix(product_);
  const std::vector<float> sum_g = padded_vector(sum_g_, outer),
                           invstd = padded_vector(invstd_, outer),
                           scale = scale_of(invstd_, weight, outer),
                           pivot = padded_vector(pivot_, inner),
                           centre = frozen ? pivot : padded_vector(offset_, inner),
                           known = padded_vector(frozen ? mean_ : shift_, outer);
  Tensor sum_gy = empty_vector(outer, y), dweight = empty_vector(outer, y);
  Tensor dmatrix = empty_matrix(outer, inner, y);
  Tensor gain = at::empty({outer, inner}, y.options());
  float *const to_sum = floats(sum_gy), *const to_dweight = floats(dweight),
               *const to_dmatrix = floats(dmatrix);
  const int64_t ld = row_of(inner);
  Scratch scratch(4 * ld * (2 * kStripRows + 1));
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const MomentKernels<T>& kernel = moment_kernels<T>();
    T* const to_gain = mutable_data<T>(gain);
    in_turns(strips_of(outer), [&](int64_t strip) {
      const int64_t first = strip * kStripRows, count = std::min(kStripRows, outer - first);
      float* const rows = reinterpret_cast<float*>(scratch.mine());
      float *const sums = rows + kStripRows * ld, *const line = sums + kStripRows * ld;
      kernel.widen(data<T>(matrix) + first * inner, count, inner, rows, ld);
      transpose(data<float>(product), inner, outer, first, count, sums, ld);
      for (int64_t n = first; n < first + count; ++n) {
        const float *const row = rows + (n - first) * ld, *const sum = sums + (n - first) * ld;
        // what y - mean is more than W (z - pivot), or less
        const float level = kernel.dot(row, centre.data(), inner) - known[n];
        const float excess = level * sum_g[n], dotted = kernel.dot(row, sum, inner);
        to_sum[n] = frozen ? dotted + excess : dotted - excess;
        to_dweight[n] = invstd[n] * to_sum[n];
        kernel.combined(scale[n], sum, scale[n] * sum_g[n], pivot.data(), inner,
                        to_dmatrix + n * inner);
        kernel.scaled(scale[n], row, inner, line);
        kernel.narrow(line, inner, to_gain + n * inner);
      }
    });
  });
  return {sum_gy, gain, dmatrix, dweight};
}

namespace {

// With dy = scale * (g - mean_g) + slope * (y - mean): the vectors [N] behind the batch's part of
// the gradients.
struct BatchVectors {
  BatchVectors(const Tensor& all_g, const Tensor& all_gy, const OptionalTensor& weight,
               const Tensor& invstd_, const OptionalTensor& shift_, const OptionalTensor& count,
               int64_t rows, int64_t length)
      : mean_g(padded_vector(all_g, length)),
        slope(padded_vector(all_gy, length)),
        shift(padded_vector(shift_, length)),
        slope_of_rows(length),
        level_of_rows(length) {
    const std::vector<float> invstd = padded_vector(invstd_, length),
                             scale = scale_of(invstd_, weight, length);
    const double given = count.has_value() ? count->item<double>() : static_cast<double>(rows);
    const float total = static_cast<float>(given < 1.0 ? 1.0 : given);  // NaN stays
    for (int64_t n = 0; n < length; ++n) {
      mean_g[n] /= total;
      slope[n] = -scale[n] * (invstd[n] * invstd[n]) * (slope[n] / total);
      shift[n] *= slope[n];
      slope_of_rows[n] = static_cast<float>(rows) * slope[n];
      level_of_rows[n] = static_cast<float>(rows) * (shift[n] - scale[n] * mean_g[n]);
    }
  }

  std::vector<float> mean_g, slope, shift;  // shift: times slope
  std::vector<float> slope_of_rows, level_of_rows;
};

// The columns of W^T diag(slope) W from `first` on, down to the diagonal. `x` [rows, ld] is W.
void mix(const float* x, int64_t ld, int64_t rows, int64_t columns, int64_t first,
         const float* slope, float* scratch, float* to, int64_t ldc) {
  const int64_t height = std::min(columns, first + kTileColumns);
  for (int64_t n = 0; n < rows; n += kRowsOfAPanel) {
    const int64_t count = std::min(kRowsOfAPanel, rows - n);
    for (int64_t r = 0; r < count; ++r) {
      const float* const row = x + (n + r) * ld + first;
      for (int64_t c = 0; c < kTileColumns; ++c) {
        scratch[r * kTileColumns + c] = slope[n + r] * row[c];
      }
    }
    block_kernels<float>().accumulate(x + n * ld, ld, height, scratch, kTileColumns, kTileColumns,
                                      count, to + first, ldc, height, n > 0);
  }
}

// Some rows of a symmetric matrix of which what is above the diagonal is there.
void complete(const float* upper, int64_t ldc, int64_t columns, int64_t first, int64_t count,
              float* to, int64_t ld) {
  for (int64_t k = 0; k < first; k += kStripRows) {
    block_kernels<float>().add_groups(upper + k * ldc + first, ldc, 0, 1, kStripRows, count, to + k,
                                      1, ld);
  }
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = first; c < columns; ++c) {
      const int64_t i = std::min(first + r, c), j = std::max(first + r, c);
      to[r * ld + c] = upper[i * ldc + j];
    }
  }
}

// The steps of moment_batch_gradients. W, its products and their sums are in memory between them.
template <typename T>
struct BatchGradients {
  BatchGradients(const Tensor& matrix_, const Tensor& gain_, const BatchVectors& batch_)
      : kernel(moment_kernels<T>()),
        matrix(data<T>(matrix_)),
        gain(data<T>(gain_)),
        batch(batch_),
        outer(matrix_.size(0)),
        inner(matrix_.size(1)),
        ld(row_of(inner)),
        tiles(padded_columns(inner) / kTileColumns),
        panels(panels_of(outer, inner)),
        packed_of_covariance(4 * inner * ld),
        rows_of_weight(4 * outer * ld),
        upper_of_mixing(4 * inner * ld),
        sums_of_panels(4 * panels.count() * ld),
        scratch(4 * std::max(kStripRows * ld, kRowsOfAPanel * kTileColumns)),
        packed(packed_of_covariance.floats()),
        x(rows_of_weight.floats()),
        upper(upper_of_mixing.floats()),
        sums(sums_of_panels.floats()) {}

  float* mine() { return reinterpret_cast<float*>(scratch.mine()); }

  // fn of a panel of W, or of the first column of a tile of [K, K].
  template <typename P, typename C>
  void each(P panel, C column) {
    in_turns(panels.count() + tiles, [&](int64_t turn) {
      // blocks of a triangle differ in size: the largest come first
      const int64_t left = panels.count() + tiles - 1 - turn;
      turn < panels.count() ? panel(turn) : column(left * kTileColumns);
    });
  }

  void prepare(const float* covariance, bool shifted) {
    each(
        [&](int64_t p) {
          const int64_t first = panels.first(p), last = first + panels.rows(p);
          kernel.widen(matrix + first * inner, last - first, inner, x + first * ld, ld);
          std::fill_n(sums + p * ld, inner, 0.0f);
          for (int64_t n = first; n < last; ++n) {
            kernel.widen(gain + n * inner, 1, inner, mine(), ld);
            kernel.add_scaled(-batch.mean_g[n], mine(), inner, sums + p * ld);
            if (shifted) kernel.add_scaled(batch.shift[n], x + n * ld, inner, sums + p * ld);
          }
        },
        [&](int64_t c) {
          block_kernels<float>().pack_weight(covariance + c, inner, 1, inner,
                                             std::min(kTileColumns, inner - c), packed + c * inner);
        });
  }

  void multiply(const float* dmatrix, const float* centre, float* to) {
    each(
        [&](int64_t p) {
          const int64_t n = panels.first(p), at = n * inner;
          kernel.products({x + n * ld, ld, panels.rows(p), inner, packed}, dmatrix + at,
                          batch.slope_of_rows.data() + n, batch.level_of_rows.data() + n, centre,
                          to + at);
        },
        [&](int64_t c) {
          mix(x, ld, outer, inner, c, batch.slope.data(), mine(), upper, ld);
        });
  }

  void finish(const float* operand, T* mixing, float* constant) {
    in_turns(strips_of(inner), [&](int64_t strip) {
      const int64_t first = strip * kStripRows, count = std::min(kStripRows, inner - first);
      complete(upper, ld, inner, first, count, mine(), ld);
      for (int64_t k = first; k < first + count; ++k) {
        float* const line = mine() + (k - first) * ld;
        kernel.narrow(line, inner, mixing + k * inner);
        // of the matrix as the products use it: a gradient that must vanish then does
        kernel.widen(mixing + k * inner, 1, inner, line, ld);
        double total = -kernel.dot(line, operand, inner);
        for (int64_t p = 0; p < panels.count(); ++p) total += sums[p * ld + k];
        constant[k] = static_cast<float>(total);
      }
    });
  }

  const MomentKernels<T>& kernel;
  const T *const matrix, *const gain;
  const BatchVectors& batch;
  const int64_t outer, inner, ld, tiles;
  const Panels panels;
  Shared packed_of_covariance, rows_of_weight, upper_of_mixing, sums_of_panels;
  Scratch scratch;
  float *const packed, *const x, *const upper, *const sums;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> moment_batch_gradients(
    const Tensor& y, const Tensor& conv_weight, const Tensor& gain_, const Tensor& dmatrix_,
    const Tensor& all_g, const Tensor& all_gy, const OptionalTensor& weight, const Tensor& invstd,
    const Tensor& pivot, const Tensor& offset_, const Tensor& covariance_,
    const OptionalTensor& shift, const OptionalTensor& count, int64_t rows) {
  const PoolScope pool;
  const int64_t outer = conv_weight.size(0), inner = conv_weight.size(1);
  const Tensor matrix = matrix_of(conv_weight, y), gain = gain_.to(y.scalar_type()).contiguous(),
               dmatrix = float_matrix(dmatrix_), covariance = float_matrix(covariance_);
  const std::vector<float> offset = padded_vector(offset_, inner),
                           centre = sum_of(padded_vector(pivot, inner), offset);
  const BatchVectors batch(all_g, all_gy, weight, invstd, shift, count, rows, outer);
  Tensor mixing = at::empty({inner, inner}, y.options()), constant = empty_vector(inner, y),
         dweight = empty_matrix(outer, inner, y);
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    constexpr bool kExact = std::is_same_v<T, float>;
    BatchGradients<T> steps(matrix, gain, batch);
    steps.prepare(data<float>(covariance), shift.has_value());
    steps.multiply(data<float>(dmatrix), centre.data(), floats(dweight));
    steps.finish((kExact ? offset : centre).data(), mutable_data<T>(mixing), floats(constant));
  });
  return {mixing, constant, dweight};
}

}  // namespace fastres
