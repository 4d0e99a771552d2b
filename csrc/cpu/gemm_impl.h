// One tile of a product: up to kTileRows rows by kTileColumns columns, sums in registers. Included
// by block_kernels_*.cpp, which choose FASTRES_VECTOR_BYTES, after the instruction set.

namespace fastres {
namespace {

#if FASTRES_VECTOR_BYTES == 64
using Vector = __m512;
constexpr int kTileRows = 14;
inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector load_vector(const float* p) { return _mm512_loadu_ps(p); }
inline void store_vector(float* p, Vector v) { _mm512_storeu_ps(p, v); }
inline Vector repeat(const float* p) { return _mm512_set1_ps(*p); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
inline Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
#elif FASTRES_VECTOR_BYTES == 32
using Vector = __m256;
constexpr int kTileRows = 6;
inline Vector zero() { return _mm256_setzero_ps(); }
inline Vector load_vector(const float* p) { return _mm256_loadu_ps(p); }
inline void store_vector(float* p, Vector v) { _mm256_storeu_ps(p, v); }
inline Vector repeat(const float* p) { return _mm256_set1_ps(*p); }
inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
inline Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
inline Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
#else
typedef float Vector __attribute__((vector_size(16)));
typedef float Unaligned __attribute__((vector_size(16), aligned(4), may_alias));
constexpr int kTileRows = 4;
inline Vector zero() { return Vector{}; }
inline Vector load_vector(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store_vector(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
inline Vector repeat(const float* p) { return Vector{*p, *p, *p, *p}; }
inline Vector add(Vector a, Vector b) { return a + b; }
inline Vector subtract(Vector a, Vector b) { return a - b; }
inline Vector multiply(Vector a, Vector b) { return a * b; }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
#endif

// Two vectors of columns at a time: what the registers hold beside their operands.
constexpr int64_t kLanes = FASTRES_VECTOR_BYTES / 4;
constexpr int64_t kStep = 2 * kLanes;
static_assert(kTileColumns % kStep == 0);

// fp32 units, or pairs of bf16 in the place of each fp32 value.
struct Single {
  static Vector fma(Vector a, Vector b, Vector c) { return multiply_add(a, b, c); }
};
#if defined(FASTRES_PAIRS)
struct Pair {
  static Vector fma(Vector a, Vector b, Vector c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

template <int ROWS>
[[gnu::always_inline]] inline void store_tile(const Vector (&left)[ROWS],
                                              const Vector (&right)[ROWS], float* c, int64_t ldc,
                                              bool onto) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    float* const to = c + r * ldc;
    store_vector(to, onto ? add(load_vector(to), left[r]) : left[r]);
    store_vector(to + kLanes, onto ? add(load_vector(to + kLanes), right[r]) : right[r]);
  }
}

// c [ROWS, kStep] (+)= sum over k of a(r, k) * b[k * ldb + j]. TRANSPOSED: a(r, k) is
// a[k * lda + r], else a[r * lda + k]. Everything counts in units.
template <typename UNIT, int ROWS, bool TRANSPOSED>
void tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c,
          int64_t ldc, bool onto) {
  Vector left[ROWS], right[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) left[r] = right[r] = zero();
  // four rows share a pointer: there are not registers for one each
  const float* from[(ROWS + 3) / 4];
#pragma GCC unroll 4
  for (int i = 0; i < (ROWS + 3) / 4; ++i) from[i] = TRANSPOSED ? a : a + 4 * i * lda;
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    const Vector first = load_vector(b), second = load_vector(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vector x = repeat(TRANSPOSED ? a + r : from[r / 4] + (r % 4) * lda + k);
      left[r] = UNIT::fma(x, first, left[r]);
      right[r] = UNIT::fma(x, second, right[r]);
    }
    b += ldb;
    if (TRANSPOSED) a += lda;
  };
  if constexpr (TRANSPOSED) {
    // b comes in short pieces, far apart: nothing else asks for them in time
    constexpr int64_t kAhead = 16;
    for (int64_t k = 0; k < depth; ++k) {
      __builtin_prefetch(b + kAhead * ldb);
      __builtin_prefetch(b + kAhead * ldb + 16);
      step(k);
    }
  } else {
    // the rows of the next tile, a cache line of each at a time
    for (int64_t k = 0; k < depth;) {
      const int64_t stop = depth - k < 16 ? depth : k + 16;
      for (int r = 0; r < ROWS; ++r) __builtin_prefetch(a + (ROWS + r) * lda + k);
#pragma GCC unroll 2
      for (; k < stop; ++k) step(k);
    }
  }
  store_tile<ROWS>(left, right, c, ldc, onto);
}

using Tile = void (*)(const float*, int64_t, const float*, int64_t, int64_t, float*, int64_t, bool);

template <typename UNIT, bool TRANSPOSED>
void any_tile(int rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
              float* c, int64_t ldc, bool onto) {
  static constexpr Tile tiles[] = {
      &tile<UNIT, 1, TRANSPOSED>,  &tile<UNIT, 2, TRANSPOSED>,  &tile<UNIT, 3, TRANSPOSED>,
      &tile<UNIT, 4, TRANSPOSED>,
#if FASTRES_VECTOR_BYTES >= 32
      &tile<UNIT, 5, TRANSPOSED>,  &tile<UNIT, 6, TRANSPOSED>,
#endif
#if FASTRES_VECTOR_BYTES == 64
      &tile<UNIT, 7, TRANSPOSED>,  &tile<UNIT, 8, TRANSPOSED>,  &tile<UNIT, 9, TRANSPOSED>,
      &tile<UNIT, 10, TRANSPOSED>, &tile<UNIT, 11, TRANSPOSED>, &tile<UNIT, 12, TRANSPOSED>,
      &tile<UNIT, 13, TRANSPOSED>, &tile<UNIT, 14, TRANSPOSED>,
#endif
  };
  for (int64_t j = 0; j < kTileColumns; j += kStep) {
    tiles[rows - 1](a, lda, b + j, ldb, depth, c + j, ldc, onto);
  }
}

// fn(first, count) over `rows` rows in tiles of equal height, one row more or less.
template <typename F>
void each_tile(int64_t rows, F fn) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles;
    fn(first, rows * (t + 1) / tiles - first);
  }
}

}  // namespace
}  // namespace fastres
