// What is done to a whole tile of bf16 once its sums are there: the loops over columns in
// block_kernels_impl.h, in the same order. Included by it where the processor converts pairs.

namespace fastres {
namespace {

// Row r of `acc`, `second` and `out` is r * 32 and r * step further; shortcut(r) is a pointer.
template <Residual KIND, bool RELU, typename F>
void expand_tile(const float* acc, const float* second, int64_t rows, const float* scale_,
                 const float* shift_, const float* s_scale_, const float* s_shift_, F shortcut,
                 int64_t step, bf16* out) {
  constexpr bool kScaled = KIND == Residual::affine || KIND == Residual::product;
  const Columns scale = columns(scale_), shift = columns(shift_);
  const Columns s_scale = kScaled ? columns(s_scale_) : scale;
  const Columns s_shift = kScaled ? columns(s_shift_) : shift;
  for (int64_t r = 0; r < rows; ++r) {
    Columns v = columns(acc + r * kTileColumns) * scale + shift;
    if constexpr (KIND == Residual::identity) v = v + columns(shortcut(r));
    if constexpr (KIND == Residual::affine) v = v + (columns(shortcut(r)) * s_scale + s_shift);
    if constexpr (KIND == Residual::product) {
      v = v + (columns(second + r * kTileColumns) * s_scale + s_shift);
    }
    if constexpr (RELU) v = where_positive(v, v);
    write(out + r * step, narrow(v));
  }
}

// MASKED: dz where the ReLU of y let through, with the sums of what is stored. Else dz, y null.
template <bool MASKED>
void data_tile(const float* acc, int64_t rows, const float* constant_, const bf16* y,
               BranchVectors branch, float* sum_g_, float* sum_gd_, int64_t step, bf16* out) {
  const Columns zero{_mm512_setzero_ps(), _mm512_setzero_ps()};
  const Columns constant = constant_ == nullptr ? zero : columns(constant_);
  if constexpr (!MASKED) {
    for (int64_t r = 0; r < rows; ++r) {
      const Columns v = columns(acc + r * kTileColumns);
      write(out + r * step, narrow(constant_ == nullptr ? v : v + constant));
    }
  } else {
    const Columns mean = columns(branch.mean), scale = columns(branch.scale);
    const Columns bias = columns(branch.bias);
    Columns sum_g = columns(sum_g_), sum_gd = columns(sum_gd_);
    for (int64_t r = 0; r < rows; ++r) {
      const Columns d = columns(y + r * step) - mean;
      const Columns dz = columns(acc + r * kTileColumns) + constant;
      const __m512i rounded = narrow(where_positive(d * scale + bias, dz));
      write(out + r * step, rounded);
      const Columns v = columns(rounded);
      sum_g = sum_g + v;
      sum_gd = sum_gd + v * d;
    }
    write(sum_g_, sum_g);
    write(sum_gd_, sum_gd);
  }
}

// The same of whole rows, in place: dz lies in out.
inline void mask_rows(bf16* out, const bf16* y, int64_t rows, int64_t width, BranchVectors branch,
                      float* sum_g_, float* sum_gd_) {
  each_stretch(rows * width, width, [&](int64_t first, int64_t end, int64_t l, int64_t ahead) {
    const Columns mean = columns(branch.mean + l), scale = columns(branch.scale + l);
    const Columns bias = columns(branch.bias + l);
    Columns sum_g = columns(sum_g_ + l), sum_gd = columns(sum_gd_ + l);
    for (int64_t i = first; i < end; i += width) {
      __builtin_prefetch(y + i + ahead);
      __builtin_prefetch(out + i + ahead, 1);
      const Columns d = columns(y + i) - mean;
      const Columns v = where_positive(d * scale + bias, columns(out + i));
      write(out + i, narrow(v));
      sum_g = sum_g + v;
      sum_gd = sum_gd + v * d;
    }
    write(sum_g_ + l, sum_g);
    write(sum_gd_ + l, sum_gd);
  });
}

// dx: acc, what the shortcut passes back, and the mask of x. `residual` and `residual_mask` may be
// null.
template <bool MASK>
void input_tile(const float* acc, int64_t rows, const bf16* x, const bf16* residual,
                const bf16* residual_mask, int64_t residual_step, int64_t step, bf16* out) {
  for (int64_t r = 0; r < rows; ++r) {
    Columns v = columns(acc + r * kTileColumns);
    if (residual != nullptr) {
      __m512i passed = bits(residual + r * residual_step);
      if (residual_mask != nullptr) {
        passed = where_positive(bits(residual_mask + r * residual_step), passed);
      }
      v = v + columns(passed);
    }
    __m512i rounded = narrow(v);
    if constexpr (MASK) rounded = where_positive(bits(x + r * step), rounded);
    write(out + r * step, rounded);
  }
}

}  // namespace
}  // namespace fastres
