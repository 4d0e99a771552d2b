// An outer product of pairs whose second operand lies in rows: the first tile to use two of them joins
// them, for those after it too. Included by block_kernels_impl.h after pack_pairs_impl.h.

namespace fastres {
namespace {

// tile<Pair, ROWS, true> of b [2 * depth, 32], rows `step` apart, which is left in `joined`. What is
// wanted next lies `ahead` of b.
template <int ROWS>
void joining_tile(const float* a, int64_t lda, const bf16* b, int64_t step, int64_t ahead,
                  int64_t depth, float* joined, float* c, int64_t ldc, bool onto) {
  Vector left[ROWS], right[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) left[r] = right[r] = zero();
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(b + ahead);
    __builtin_prefetch(b + ahead + step);
    const Columns pairs = join(bits(b), bits(b + step));
    write(joined, pairs);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vector x = repeat(a + r);
      left[r] = Pair::fma(x, pairs.low, left[r]);
      right[r] = Pair::fma(x, pairs.high, right[r]);
    }
    a += lda;
    b += 2 * step;
    joined += kTileColumns;
  }
  store_tile<ROWS>(left, right, c, ldc, onto);
}

using JoiningTile = void (*)(const float*, int64_t, const bf16*, int64_t, int64_t, int64_t, float*,
                             float*, int64_t, bool);
constexpr JoiningTile kJoiningTiles[] = {
    &joining_tile<1>,  &joining_tile<2>,  &joining_tile<3>,  &joining_tile<4>,  &joining_tile<5>,
    &joining_tile<6>,  &joining_tile<7>,  &joining_tile<8>,  &joining_tile<9>,  &joining_tile<10>,
    &joining_tile<11>, &joining_tile<12>, &joining_tile<13>, &joining_tile<14>,
};

void accumulate_rows(const void* a_, int64_t lda, int64_t m, const bf16* b, int64_t step,
                     int64_t n, int64_t rows, float* c, int64_t ldc, bool onto) {
  const auto* const a = static_cast<const float*>(a_);
  const int64_t depth = rows / 2;
  alignas(64) float joined[kRowsOfAPanel / 2 * kTileColumns];
  for (int64_t j = 0; j < n; j += kTileColumns) {
    const int64_t ahead = j + kTileColumns < n ? kTileColumns : rows * step - j;
    each_tile(m, [&](int64_t i, int64_t count) {
      float* const to = c + i * ldc + j;
      if (i == 0) {
        kJoiningTiles[count - 1](a, lda, b + j, step, ahead, depth, joined, to, ldc, onto);
      } else {
        any_tile<Pair, true>(count, a + i, lda, joined, kTileColumns, depth, to, ldc, onto);
      }
    });
  }
}

}  // namespace
}  // namespace fastres
