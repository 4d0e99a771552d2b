// 32 columns of bf16, one vector in memory and two of fp32: what the loops are written in where the
// processor converts pairs. Included after kernels_impl.h.
//
// Rounding is to nearest even and NaN stays NaN, as `store` does it, but that numbers below the
// smallest normal one become zero: products take them for zero anyway.

namespace fastres {
namespace {

constexpr int64_t kWide = 32;

struct Columns {
  __m512 low, high;
};

[[gnu::always_inline]] inline __m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
[[gnu::always_inline]] inline Columns columns(__m512i bits) {
  return {widen(_mm512_castsi512_si256(bits)), widen(_mm512_extracti64x4_epi64(bits, 1))};
}
[[gnu::always_inline]] inline __m512i narrow(Columns v) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v.high, v.low));
}
[[gnu::always_inline]] inline __m512i narrow(__m512i bits) { return bits; }

// Memory: whole vectors, or those columns of them that exist.
struct All {};
[[gnu::always_inline]] inline __mmask32 first_columns(int64_t count) {
  return count < 32 ? (__mmask32{1} << count) - 1 : ~__mmask32{0};
}
[[gnu::always_inline]] inline __m512i bits(const bf16* p, All = {}) {
  return _mm512_loadu_si512(p);
}
[[gnu::always_inline]] inline __m512i bits(const bf16* p, __mmask32 some) {
  return _mm512_maskz_loadu_epi16(some, p);
}
template <typename SOME = All>
[[gnu::always_inline]] inline Columns columns(const bf16* p, SOME some = {}) {
  return columns(bits(p, some));
}
[[gnu::always_inline]] inline Columns columns(const float* p, All = {}) {
  return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)};
}
[[gnu::always_inline]] inline Columns columns(const float* p, __mmask32 some) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(some), p),
          _mm512_maskz_loadu_ps(static_cast<__mmask16>(some >> 16), p + 16)};
}
[[gnu::always_inline]] inline void write(bf16* p, __m512i v, All = {}) {
  _mm512_storeu_si512(p, v);
}
[[gnu::always_inline]] inline void write(bf16* p, __m512i v, __mmask32 some) {
  _mm512_mask_storeu_epi16(p, some, v);
}
[[gnu::always_inline]] inline void write(float* p, Columns v, All = {}) {
  _mm512_storeu_ps(p, v.low);
  _mm512_storeu_ps(p + 16, v.high);
}
[[gnu::always_inline]] inline void write(float* p, Columns v, __mmask32 some) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(some), v.low);
  _mm512_mask_storeu_ps(p + 16, static_cast<__mmask16>(some >> 16), v.high);
}

[[gnu::always_inline]] inline Columns operator+(Columns a, Columns b) {
  return {_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)};
}
[[gnu::always_inline]] inline Columns operator-(Columns a, Columns b) {
  return {_mm512_sub_ps(a.low, b.low), _mm512_sub_ps(a.high, b.high)};
}
[[gnu::always_inline]] inline Columns operator*(Columns a, Columns b) {
  return {_mm512_mul_ps(a.low, b.low), _mm512_mul_ps(a.high, b.high)};
}

// v where !(by <= 0), else 0.
[[gnu::always_inline]] inline __m512 where_positive(__m512 by, __m512 v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(by, _mm512_setzero_ps(), _CMP_NLE_UQ), v);
}
[[gnu::always_inline]] inline Columns where_positive(Columns by, Columns v) {
  return {where_positive(by.low, v.low), where_positive(by.high, v.high)};
}
// The same of bf16. Positive numbers are positive integers, NaNs with a sign come after -infinity.
[[gnu::always_inline]] inline __m512i where_positive(__m512i by, __m512i v) {
  const __mmask32 keep =
      _mm512_cmpgt_epi16_mask(by, _mm512_setzero_si512()) |
      _mm512_cmpgt_epu16_mask(by, _mm512_set1_epi16(static_cast<int16_t>(0xff80)));
  return _mm512_maskz_mov_epi16(keep, v);
}

// fn(first element, end, l, ahead) for the columns from l on, over stretches of the rows of `period`
// columns that n elements are: within one, sums stay in registers. What comes next lies `ahead`.
template <typename F>
[[gnu::always_inline]] inline void each_stretch(int64_t n, int64_t period, F fn) {
  constexpr int64_t kStretch = 4096;
  const int64_t step = period * (kStretch / period < 1 ? 1 : kStretch / period);
  for (int64_t first = 0; first < n; first += step) {
    const int64_t end = n - first < step ? n : first + step;
    for (int64_t l = 0; l < period; l += kWide) fn(first + l, end, l, step);
  }
}

}  // namespace
}  // namespace fastres
