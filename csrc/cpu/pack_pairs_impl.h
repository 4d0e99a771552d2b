// Operands of products as pairs of bf16: pack_impl.h in vectors of 32 columns. Included by
// block_kernels_impl.h after columns_impl.h.

namespace fastres {
namespace {

// A source gives the values of an operand, 32 columns of a row at a time. `row` is called for one
// row after the other and tells where it begins; `terms` are what belongs to the columns from c on,
// of which `some` exist.

// y as it is, or relu(bn(y)); minus the pivot.
template <bool BN, bool PIVOT>
class BnSource {
 public:
  using Row = const bf16*;
  struct Terms {
    Columns mean, scale, bias, pivot;
  };

  BnSource(const Operand<bf16>& o, int64_t first)
      : o_(o), next_(first), ahead_(o.y.dense() ? rows_ahead<bf16>(o.channels) * o.y.channels : 0) {}

  [[gnu::always_inline]] Row row() {
    const bf16* const y = o_.y.at(next_++);
    prefetch_row(y + ahead_, o_.channels);
    return y;
  }
  template <typename SOME>
  [[gnu::always_inline]] Terms terms(int64_t c, SOME some) const {
    Terms t;
    if constexpr (BN) {
      t.mean = columns(o_.branch.mean + c, some);
      t.scale = columns(o_.branch.scale + c, some);
      t.bias = columns(o_.branch.bias + c, some);
    }
    if constexpr (PIVOT) t.pivot = columns(o_.pivot + c, some);
    return t;
  }
  template <typename SOME>
  [[gnu::always_inline]] auto value(Row y, int64_t c, const Terms& t, SOME some) const {
    __m512i z = bits(y + c, some);
    if constexpr (BN) {
      const Columns v = (columns(z) - t.mean) * t.scale + t.bias;
      z = narrow(where_positive(v, v));
    }
    if constexpr (PIVOT) {
      return columns(z) - t.pivot;
    } else {
      return z;
    }
  }

 private:
  const Operand<bf16>& o_;
  int64_t next_, ahead_;
};

// dout, masked by out where there is one.
template <bool MASKED>
class MaskedSource {
 public:
  struct Row {
    const bf16 *dout, *out;
  };
  struct Terms {};

  MaskedSource(const Operand<bf16>& o, int64_t first)
      : o_(o), next_(first), ahead_(rows_ahead<bf16>(o.channels) * o.step) {}

  [[gnu::always_inline]] Row row() {
    const int64_t at = next_++ * o_.step;
    prefetch_row(o_.dout + at + ahead_, o_.channels);
    if (MASKED) prefetch_row(o_.out + at + ahead_, o_.channels);
    return {o_.dout + at, MASKED ? o_.out + at : nullptr};
  }
  template <typename SOME>
  [[gnu::always_inline]] Terms terms(int64_t, SOME) const {
    return {};
  }
  template <typename SOME>
  [[gnu::always_inline]] __m512i value(Row row, int64_t c, const Terms&, SOME some) const {
    const __m512i g = bits(row.dout + c, some);
    return MASKED ? where_positive(bits(row.out + c, some), g) : g;
  }

 private:
  const Operand<bf16>& o_;
  int64_t next_, ahead_;
};

// The gradient through a BN; FROZEN: with given statistics.
template <Mask MASK, bool FROZEN>
class GradientSource {
 public:
  struct Row {
    const bf16 *y, *dout, *out;
  };
  struct Terms {
    Columns mean, scale, bias, a, b, c;
  };

  GradientSource(const Operand<bf16>& o, int64_t first)
      : o_(o), next_(first), ahead_(rows_ahead<bf16>(o.channels) * o.step) {}

  [[gnu::always_inline]] Row row() {
    const int64_t at = next_++ * o_.step;
    prefetch_row(o_.y.base + at + ahead_, o_.channels);
    prefetch_row(o_.dout + at + ahead_, o_.channels);
    if (MASK == Mask::out) prefetch_row(o_.out + at + ahead_, o_.channels);
    return {o_.y.base + at, o_.dout + at, MASK == Mask::out ? o_.out + at : nullptr};
  }
  template <typename SOME>
  [[gnu::always_inline]] Terms terms(int64_t c, SOME some) const {
    Terms t;
    t.mean = columns(o_.branch.mean + c, some);
    t.a = columns(o_.gradient.a + c, some);
    if constexpr (MASK == Mask::again) {
      t.scale = columns(o_.branch.scale + c, some);
      t.bias = columns(o_.branch.bias + c, some);
    }
    if constexpr (!FROZEN) {
      t.b = columns(o_.gradient.b + c, some);
      t.c = columns(o_.gradient.c + c, some);
    }
    return t;
  }
  template <typename SOME>
  [[gnu::always_inline]] Columns value(Row row, int64_t c, const Terms& t, SOME some) const {
    const Columns d = columns(row.y + c, some) - t.mean;
    __m512i dout = bits(row.dout + c, some);
    if constexpr (MASK == Mask::out) dout = where_positive(bits(row.out + c, some), dout);
    Columns g = columns(dout);
    if constexpr (MASK == Mask::again) g = where_positive(d * t.scale + t.bias, g);
    if constexpr (FROZEN) {
      return t.a * g;
    } else {
      return t.a * g + (t.b * d + t.c);
    }
  }

 private:
  const Operand<bf16>& o_;
  int64_t next_, ahead_;
};

// What one place of a kernel meets.
class PatchSource {
 public:
  using Row = const bf16*;
  struct Terms {};

  explicit PatchSource(const PatchRows<bf16>& rows) : rows_(rows) {}

  [[gnu::always_inline]] Row row() { return rows_.next(); }
  template <typename SOME>
  [[gnu::always_inline]] Terms terms(int64_t, SOME) const {
    return {};
  }
  template <typename SOME>
  [[gnu::always_inline]] __m512i value(Row x, int64_t c, const Terms&, SOME some) const {
    return bits(x + c, some);
  }

 private:
  PatchRows<bf16> rows_;
};

// 32 columns of two rows as pairs, one beside the other.
[[gnu::always_inline]] inline Columns join(__m512i low, __m512i high) {
  const __m512i columns = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  // values i of `low` and 32 + i, which are those of `high`
  const __m512i near = _mm512_or_si512(
      columns, _mm512_slli_epi32(_mm512_add_epi32(columns, _mm512_set1_epi32(32)), 16));
  const __m512i far = _mm512_add_epi32(near, _mm512_set1_epi32(16 << 16 | 16));
  return {_mm512_castsi512_ps(_mm512_permutex2var_epi16(low, near, high)),
          _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, far, high))};
}

// Where the units go: rows of bf16, or rows of pairs that join two rows.
struct PairWriter {
  Order order;
  int64_t ld, channels;
  void* to;
  float* sums;  // [channels] of what is written, before rounding; may be null
  int64_t end;  // columns from `channels` up to here become zero

  // The columns from `first` on.
  PairWriter columns_from(int64_t first, int64_t count, int64_t zeros) const {
    PairWriter part = *this;
    part.to = static_cast<char*>(to) + first * (order == Order::rows ? 2 : 4);
    part.channels = count;
    part.end = count + zeros;
    return part;
  }

  template <typename S>
  void write_all(int64_t rows, S source) const {
    const auto run = order == Order::rows ? (sums == nullptr ? &PairWriter::pairs<Order::rows, false, S>
                                                             : &PairWriter::pairs<Order::rows, true, S>)
                     : sums == nullptr    ? &PairWriter::pairs<Order::transposed, false, S>
                                          : &PairWriter::pairs<Order::transposed, true, S>;
    (this->*run)(rows, source);
  }

 private:
  template <Order ORDER, bool SUMS, typename S>
  void pairs(int64_t rows, S& source) const {
    for (int64_t r = 0; r < rows; r += 2) {
      const auto first = source.row();
      if (r + 1 < rows) {
        pair<ORDER, SUMS, true>(r, source, first, source.row());
      } else {
        pair<ORDER, SUMS, false>(r, source, first, first);
      }
    }
  }

  template <Order ORDER, bool SUMS, bool BOTH, typename S>
  [[gnu::always_inline]] void pair(int64_t r, const S& source, typename S::Row first, typename S::Row second) const {
    int64_t c = 0;
    for (; c + kTileColumns <= channels; c += kTileColumns) {
      some_columns<ORDER, SUMS, BOTH>(r, source, first, second, c, All{});
    }
    if (c < channels) {
      some_columns<ORDER, SUMS, BOTH>(r, source, first, second, c, first_columns(channels - c));
    }
    if constexpr (ORDER == Order::rows) {
      for (c = channels; c < end; ++c) row_at(r)[c] = bf16{};
      for (c = channels; BOTH && c < end; ++c) row_at(r + 1)[c] = bf16{};
    } else {
      for (c = channels; c < end; ++c) pairs_at(r)[c] = 0.0f;
    }
  }

  template <Order ORDER, bool SUMS, bool BOTH, typename S, typename SOME>
  [[gnu::always_inline]] void some_columns(int64_t r, const S& source, typename S::Row first, typename S::Row second,
                    int64_t c, SOME some) const {
    const auto terms = source.terms(c, some);
    const auto a = source.value(first, c, terms, some), b = source.value(second, c, terms, some);
    if constexpr (SUMS) {
      Columns total = columns(sums + c, some) + as_columns(a);
      if constexpr (BOTH) total = total + as_columns(b);
      write(sums + c, total, some);
    }
    const __m512i low = narrow(a), high = BOTH ? narrow(b) : _mm512_setzero_si512();
    if constexpr (ORDER == Order::rows) {
      write(row_at(r) + c, low, some);
      if constexpr (BOTH) write(row_at(r + 1) + c, high, some);
    } else {
      write(pairs_at(r) + c, join(low, high), some);
    }
  }

  static Columns as_columns(Columns v) { return v; }
  static Columns as_columns(__m512i v) { return columns(v); }

  bf16* row_at(int64_t r) const { return static_cast<bf16*>(to) + r * ld; }
  float* pairs_at(int64_t r) const { return static_cast<float*>(to) + r / 2 * ld; }
};

void pack_pairs(const Operand<bf16>& o, int64_t first, int64_t rows, Order order, int64_t ld,
                void* to, float* sums) {
  const PairWriter writer{order, ld, o.channels, to, sums, ld};
  const bool bn = o.branch.mean != nullptr, pivot = o.pivot != nullptr;
  const bool masked = o.out != nullptr, frozen = o.gradient.b == nullptr;
  if (o.patches.base != nullptr) {
    for (int64_t done = 0; done < o.channels;) {
      const PatchRows<bf16> pixels(o.patches, o.patches.column + done, first);
      const int64_t left = o.channels - done, count = left < pixels.count() ? left : pixels.count();
      const int64_t zeros = count == left ? ld - o.channels : 0;
      writer.columns_from(done, count, zeros).write_all(rows, PatchSource(pixels));
      done += count;
    }
  } else if (o.gradient.a != nullptr) {
    const auto run = [&]<Mask MASK>() {
      frozen ? writer.write_all(rows, GradientSource<MASK, true>(o, first))
             : writer.write_all(rows, GradientSource<MASK, false>(o, first));
    };
    masked   ? run.template operator()<Mask::out>()
    : o.relu ? run.template operator()<Mask::again>()
             : run.template operator()<Mask::all>();
  } else if (o.dout != nullptr) {
    masked ? writer.write_all(rows, MaskedSource<true>(o, first))
           : writer.write_all(rows, MaskedSource<false>(o, first));
  } else if (bn) {
    pivot ? writer.write_all(rows, BnSource<true, true>(o, first))
          : writer.write_all(rows, BnSource<true, false>(o, first));
  } else {
    pivot ? writer.write_all(rows, BnSource<false, true>(o, first))
          : writer.write_all(rows, BnSource<false, false>(o, first));
  }
}

// A square of 16 by 16 units across its diagonal.
[[gnu::always_inline]] inline void transpose(__m512i (&rows)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    rows[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    rows[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// pack_weight where the depth is contiguous in the matrix, as in a convolution's weight: pairs lie
// side by side, column by column.
void pack_weight_pairs(const float* matrix, int64_t depth_stride, int64_t column_stride,
                       int64_t depth, int64_t columns_, void* to) {
  if (depth_stride != 1) {
    return pack_weight<bf16, true>(matrix, depth_stride, column_stride, depth, columns_, to);
  }
  float* const units = static_cast<float*>(to);
  for (int64_t k = 0; k < depth; k += kWide) {
    const __mmask32 some = first_columns(depth - k);
    const int64_t pairs = depth - k < kWide ? (depth - k + 1) / 2 : kWide / 2;
    for (int64_t from = 0; from < kTileColumns; from += 16) {
      __m512i rows[16];
      for (int64_t j = 0; j < 16; ++j) {
        const int64_t c = from + j;
        rows[j] = c < columns_ ? narrow(columns(matrix + c * column_stride + k, some))
                               : _mm512_setzero_si512();
      }
      transpose(rows);
      for (int64_t p = 0; p < pairs; ++p) {
        _mm512_storeu_si512(units + (k / 2 + p) * kTileColumns + from, rows[p]);
      }
    }
  }
}

}  // namespace
}  // namespace fastres
