// The loops of kernels_impl.h over bf16 in vectors of 32 columns, where the processor converts
// pairs. Included by kernels_avx512bf16.cpp after columns_impl.h. Sums are taken in the same order.
// What does not divide into whole vectors goes to the loops of kernels_impl.h.

namespace fastres {
namespace {

inline bool divides(int64_t n, int64_t period) {
  return period > 0 && period % kWide == 0 && n % period == 0;
}

void statistics_columns(const bf16* y, int64_t n, int64_t period, float* pivot, float* sum,
                        float* squares) {
  if (!divides(n, period) || n == 0) return statistics(y, n, period, pivot, sum, squares);
  for (int64_t l = 0; l < period; l += kWide) {
    const Columns zero{_mm512_setzero_ps(), _mm512_setzero_ps()};
    write(pivot + l, columns(y + l));
    write(sum + l, zero);
    write(squares + l, zero);
  }
  each_stretch(n, period, [&](int64_t first, int64_t end, int64_t l, int64_t ahead) {
    const Columns shift = columns(pivot + l);
    Columns s = columns(sum + l), q = columns(squares + l);
    for (int64_t i = first; i < end; i += period) {
      __builtin_prefetch(y + i + ahead);
      const Columns d = columns(y + i) - shift;
      s = s + d;
      q = q + d * d;
    }
    write(sum + l, s);
    write(squares + l, q);
  });
}

template <Shortcut KIND, bool RELU>
void apply_columns_of(const bf16* y, bf16* out, int64_t n, int64_t period, BranchVectors b,
                      const bf16* shortcut, BranchVectors s) {
  each_period(n, period, [&](int64_t i, int64_t lanes) {
    prefetch(y, i, lanes);
    if constexpr (KIND != Shortcut::none) prefetch(shortcut, i, lanes);
    for (int64_t l = 0; l < lanes; l += kWide) {
      Columns v = (columns(y + i + l) - columns(b.mean + l)) * columns(b.scale + l) +
                  columns(b.bias + l);
      if constexpr (KIND == Shortcut::identity) v = v + columns(shortcut + i + l);
      if constexpr (KIND == Shortcut::bn) {
        v = v + ((columns(shortcut + i + l) - columns(s.mean + l)) * columns(s.scale + l) +
                 columns(s.bias + l));
      }
      if constexpr (RELU) v = where_positive(v, v);
      write(out + i + l, narrow(v));
    }
  });
}

void apply_columns(const bf16* y, bf16* out, int64_t n, int64_t period, BranchVectors branch,
                   const bf16* shortcut, BranchVectors s_branch, Shortcut kind, bool relu) {
  if (!divides(n, period)) {
    return apply(y, out, n, period, branch, shortcut, s_branch, kind, relu);
  }
  const auto run = [&]<Shortcut KIND>() {
    (relu ? &apply_columns_of<KIND, true> : &apply_columns_of<KIND, false>)(
        y, out, n, period, branch, shortcut, s_branch);
  };
  switch (kind) {
    case Shortcut::none:
      return run.template operator()<Shortcut::none>();
    case Shortcut::identity:
      return run.template operator()<Shortcut::identity>();
    case Shortcut::bn:
      return run.template operator()<Shortcut::bn>();
  }
}

// g: dout where the ReLU let through. d is y - mean.
template <Mask MASK>
[[gnu::always_inline]] inline Columns masked_columns(const bf16* dout, const bf16* out, int64_t i,
                                                     Columns d, Columns scale, Columns bias) {
  __m512i g = bits(dout + i);
  if constexpr (MASK == Mask::out) g = where_positive(bits(out + i), g);
  if constexpr (MASK == Mask::again) return where_positive(d * scale + bias, columns(g));
  return columns(g);
}

template <Mask MASK, bool SECOND>
void reduce_columns_of(const bf16* dout, const bf16* out, const bf16* y, const bf16* s_y,
                       int64_t n, int64_t period, BranchVectors b, const float* s_mean_,
                       float* sum_g, float* sum_gd, float* sum_gd_s) {
  const Columns zero{_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t l = 0; l < period; l += kWide) {
    write(sum_g + l, zero);
    write(sum_gd + l, zero);
    if constexpr (SECOND) write(sum_gd_s + l, zero);
  }
  each_stretch(n, period, [&](int64_t first, int64_t end, int64_t l, int64_t ahead) {
    const Columns mean = columns(b.mean + l), scale = columns(b.scale + l);
    const Columns bias = columns(b.bias + l), s_mean = SECOND ? columns(s_mean_ + l) : zero;
    Columns total = columns(sum_g + l), with_d = columns(sum_gd + l);
    Columns with_s = SECOND ? columns(sum_gd_s + l) : zero;
    for (int64_t i = first; i < end; i += period) {
      __builtin_prefetch(y + i + ahead);
      __builtin_prefetch(dout + i + ahead);
      if constexpr (MASK == Mask::out) __builtin_prefetch(out + i + ahead);
      if constexpr (SECOND) __builtin_prefetch(s_y + i + ahead);
      const Columns d = columns(y + i) - mean;
      const Columns g = masked_columns<MASK>(dout, out, i, d, scale, bias);
      total = total + g;
      with_d = with_d + g * d;
      if constexpr (SECOND) with_s = with_s + g * (columns(s_y + i) - s_mean);
    }
    write(sum_g + l, total);
    write(sum_gd + l, with_d);
    if constexpr (SECOND) write(sum_gd_s + l, with_s);
  });
}

void reduce_columns(const bf16* dout, const bf16* out, const bf16* y, const bf16* s_y, int64_t n,
                    int64_t period, BranchVectors branch, const float* s_mean, bool relu,
                    float* sum_g, float* sum_gd, float* sum_gd_s) {
  if (!divides(n, period)) {
    return reduce(dout, out, y, s_y, n, period, branch, s_mean, relu, sum_g, sum_gd, sum_gd_s);
  }
  const auto run = [&]<Mask MASK>() {
    (s_y != nullptr ? &reduce_columns_of<MASK, true> : &reduce_columns_of<MASK, false>)(
        dout, out, y, s_y, n, period, branch, s_mean, sum_g, sum_gd, sum_gd_s);
  };
  !relu            ? run.template operator()<Mask::all>()
  : out != nullptr ? run.template operator()<Mask::out>()
                   : run.template operator()<Mask::again>();
}

template <Mask MASK, bool FROZEN>
void backward_columns_of(const bf16* dout, const bf16* out, const bf16* y, int64_t n,
                         int64_t period, BranchVectors b, GradientVectors gradient, bf16* dy,
                         bf16* g_out) {
  each_period(n, period, [&](int64_t i, int64_t lanes) {
    prefetch(y, i, lanes);
    prefetch(dout, i, lanes);
    if constexpr (MASK == Mask::out) prefetch(out, i, lanes);
    for (int64_t l = 0; l < lanes; l += kWide) {
      const Columns d = columns(y + i + l) - columns(b.mean + l);
      const Columns g = masked_columns<MASK>(dout, out, i + l, d, columns(b.scale + l),
                                             columns(b.bias + l));
      Columns v = columns(gradient.a + l) * g;
      if constexpr (!FROZEN) v = v + (columns(gradient.b + l) * d + columns(gradient.c + l));
      write(dy + i + l, narrow(v));
      if (g_out != nullptr) write(g_out + i + l, narrow(g));
    }
  });
}

void backward_columns(const bf16* dout, const bf16* out, const bf16* y, const bf16* s_y, int64_t n,
                      int64_t period, BranchVectors branch, GradientVectors gradient,
                      const float* s_mean, GradientVectors s_gradient, bool relu, bf16* dy,
                      bf16* ds) {
  if (!divides(n, period) || s_y != nullptr) {
    return backward(dout, out, y, s_y, n, period, branch, gradient, s_mean, s_gradient, relu, dy,
                    ds);
  }
  const auto run = [&]<Mask MASK>() {
    (gradient.b == nullptr ? &backward_columns_of<MASK, true> : &backward_columns_of<MASK, false>)(
        dout, out, y, n, period, branch, gradient, dy, ds);
  };
  !relu            ? run.template operator()<Mask::all>()
  : out != nullptr ? run.template operator()<Mask::out>()
                   : run.template operator()<Mask::again>();
}

// v > best, or v is NaN.
[[gnu::always_inline]] inline __mmask32 wins(__m512i v_, __m512i best_) {
  const Columns v = columns(v_), best = columns(best_);
  const auto better = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  };
  return static_cast<__mmask32>(better(v.low, best.low)) |
         static_cast<__mmask32>(better(v.high, best.high)) << 16;
}

void max_window_columns(const bf16* const* pixels, const uint8_t* which, int64_t count,
                        int64_t channels, bf16* out, uint8_t* index, float* scratch) {
  if (channels % kWide != 0) {
    return max_window(pixels, which, count, channels, out, index, scratch);
  }
  for (int64_t c = 0; c < channels; c += kWide) {
    __m512i best = _mm512_set1_epi16(static_cast<int16_t>(0xff80));
    __m512i place = _mm512_set1_epi16(which[0]);
    for (int64_t p = 0; p < count; ++p) {
      const __m512i v = bits(pixels[p] + c);
      const __mmask32 moves = wins(v, best);
      best = _mm512_mask_mov_epi16(best, moves, v);
      place = _mm512_mask_mov_epi16(place, moves, _mm512_set1_epi16(which[p]));
    }
    write(out + c, best);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(index + c), _mm512_cvtepi16_epi8(place));
  }
}

void max_gradient_columns(const bf16* const* gradients, const uint8_t* const* indices,
                          const uint8_t* which, int64_t count, int64_t channels, bf16* dx,
                          float* sum) {
  if (channels % kWide != 0) {
    return max_gradient(gradients, indices, which, count, channels, dx, sum);
  }
  for (int64_t c = 0; c < channels; c += kWide) {
    Columns total{_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t p = 0; p < count; ++p) {
      const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices[p] + c));
      const __mmask32 here =
          _mm256_cmpeq_epi8_mask(index, _mm256_set1_epi8(static_cast<char>(which[p])));
      total = total + columns(_mm512_maskz_mov_epi16(here, bits(gradients[p] + c)));
    }
    write(dx + c, narrow(total));
  }
}

constexpr Kernels<bf16> table_of_columns() {
  Kernels<bf16> kernels = table<bf16>();
  kernels.statistics = &statistics_columns;
  kernels.apply = &apply_columns;
  kernels.reduce = &reduce_columns;
  kernels.backward = &backward_columns;
  kernels.max_window = &max_window_columns;
  kernels.max_gradient = &max_gradient_columns;
  return kernels;
}

}  // namespace
}  // namespace fastres
