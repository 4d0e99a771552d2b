#include "block_rows.h"

#include <bit>

namespace fastres {
namespace {

// of an outer product's operands
constexpr int64_t kPairOfPanelsBytes = int64_t{320} << 10;
constexpr int64_t kRowsOfMostPanels = kRowsOfAPanel - 2;

}  // namespace

bool products_serve(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                    at::IntArrayRef padding, int64_t groups) {
  const bool pointwise = groups == 1 && weight.size(2) * weight.size(3) == 1 && padding[0] == 0 &&
                         padding[1] == 0 && stride[0] == stride[1];
  return pointwise && x.numel() > 0 && weight.size(1) >= 16 &&
         for_type(x.scalar_type(), [](auto type) { return block_kernels<decltype(type)>().pairs; });
}

bool is_plain_3x3(const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                  at::IntArrayRef dilation, int64_t groups) {
  const auto both = [](at::IntArrayRef pair, int64_t value) {
    return pair[0] == value && pair[1] == value;
  };
  return groups == 1 && both(weight.sizes().slice(2), 3) && both(stride, 1) && both(padding, 1) &&
         both(dilation, 1);
}

std::vector<float> padded_vector(const OptionalTensor& vector, int64_t length) {
  std::vector<float> values(padded_columns(length), 0.0f);
  if (vector.has_value()) {
    const at::Tensor v = vector->to(at::kFloat).contiguous();
    std::copy_n(v.const_data_ptr<float>(), length, values.begin());
  }
  return values;
}

Panels::Panels(int64_t rows, int64_t row_bytes, int64_t budget, int64_t most)
    : rows_(rows),
      height_(std::clamp<int64_t>(budget / std::max<int64_t>(1, row_bytes), 28, most)) {
  count_ = std::max<int64_t>(1, (rows + height_ - 1) / height_);
  if (count_ > 1) {  // whole rounds of a few threads
    count_ = (count_ + 3) / 4 * 4;
  }
}

Scratch::Scratch(int64_t bytes)
    : bytes_((bytes + 4095) / 4096 * 4096 + 256),
      memory_(at::empty({bytes_ * at::get_num_threads() + 64}, at::kByte)) {}

char* Scratch::mine() {
  char* const start = static_cast<char*>(memory_.mutable_data_ptr());
  char* const aligned = start + (64 - reinterpret_cast<uintptr_t>(start) % 64) % 64;
  return aligned + at::get_thread_num() * bytes_;
}

std::tuple<at::Tensor, at::Tensor> ColumnSums::totals(const std::vector<float>& factor,
                                                      const at::Tensor& like) const {
  std::vector<double> total(2 * columns_, 0.0);
  const int64_t sums = 2 * columns_;
  for (auto from = partial_.begin(); from != partial_.end(); from += sums) {
    for (int64_t i = 0; i < sums; ++i) total[i] += from[i];
  }
  at::Tensor result[2] = {empty_vector(columns_, like), empty_vector(columns_, like)};
  for (int64_t c = 0; c < columns_; ++c) {
    const float share = factor.empty() ? 1.0f : factor[c];
    result[0].mutable_data_ptr<float>()[c] = static_cast<float>(total[c]);
    result[1].mutable_data_ptr<float>()[c] = static_cast<float>(total[columns_ + c] * share);
  }
  return {result[0], result[1]};
}

template <typename T>
PackedWeight<T>::PackedWeight(const at::Tensor& matrix_) : depth_(matrix_.size(0)) {
  const at::Tensor matrix = matrix_.to(at::kFloat);
  const int64_t columns = matrix.size(1);
  const int64_t units = block_kernels<T>().pairs ? (depth_ + 1) / 2 : depth_;
  units_ = at::empty({padded_columns(columns) * units + 16}, matrix.options());
  float* const start = units_.template mutable_data_ptr<float>();
  const float* const from = matrix.template const_data_ptr<float>();
  const int64_t down = matrix.stride(0), across = matrix.stride(1);
  in_turns(padded_columns(columns) / kTileColumns, [&](int64_t tile) {
    const int64_t c = tile * kTileColumns;
    block_kernels<T>().pack_weight(from + c * across, down, across, depth_,
                                   std::min(kTileColumns, columns - c), start + c * units);
  });
}

template <typename T>
Factor factor(const Operand<T>& operand, int64_t first, int64_t rows, const PackedWeight<T>& weight,
              void* to) {
  const int64_t depth = operand.channels;
  if (lies_as_units(operand)) {
    return {PlainRows<T>(operand, first).start, depth, weight.units(), depth};
  }
  const int64_t ld = staggered_row<T>(depth);
  block_kernels<T>().pack(operand, first, rows, Order::rows, ld, to, nullptr);
  return {to, ld, weight.units(), depth};
}

namespace {

// Rows in groups and columns in blocks: a piece of the product stays in the second cache. Pieces of
// one size, an even number.
struct Split {
  Split(int64_t m, int64_t n, int64_t rows) : tiles(padded_columns(n) / kTileColumns) {
    constexpr int64_t kPiece = int64_t{1} << 17;  // values
    const int64_t fits = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, m) / kTileColumns);
    blocks = (tiles + fits - 1) / fits;
    if (blocks > 1) blocks = std::min(tiles, (blocks + 1) / 2 * 2);
    groups = count_groups(m, n, rows);
  }
  int64_t column(int64_t block) const { return tiles * block / blocks * kTileColumns; }
  int64_t widest() const { return (tiles + blocks - 1) / blocks * kTileColumns; }

  int64_t tiles, blocks, groups;
};

// A column of ones beside the units of an operand: its product is the other one's column sums.
void write_ones(float* to, int64_t rows, int64_t ld, bool pairs) {
  const float one = pairs ? std::bit_cast<float>(0x3f803f80u) : 1.0f;
  for (int64_t r = 0; r < (pairs ? (rows + 1) / 2 : rows); ++r) to[r * ld] = one;
}

// Some rows of an operand.
struct Rows {
  int64_t first, count;
};

}  // namespace

int64_t count_groups(int64_t m, int64_t n, int64_t rows) {
  constexpr int64_t kPartials = int64_t{1} << 20;  // values
  const int64_t fits = std::min(kPartials / std::max<int64_t>(1, m * n), rows / 512);
  const int64_t groups = std::clamp<int64_t>(fits, 1, 16);
  return groups > 1 ? groups / 2 * 2 : groups;
}

at::Tensor sum_of_groups(const at::Tensor& partial, int64_t n, bool transposed) {
  const int64_t groups = partial.size(0), m = partial.size(1), ldc = partial.size(2);
  const float* const all = partial.const_data_ptr<float>();
  at::Tensor result = at::empty({transposed ? n : m, transposed ? m : n}, partial.options());
  float* const out = result.mutable_data_ptr<float>();
  const int64_t row_step = transposed ? 1 : n, column_step = transposed ? m : 1;
  in_turns((m + kStripRows - 1) / kStripRows, [&](int64_t strip) {
    const int64_t first = strip * kStripRows, count = std::min(kStripRows, m - first);
    block_kernels<float>().add_groups(all + first * ldc, ldc, m * ldc, groups, count, n,
                                      out + first * row_step, row_step, column_step);
  });
  return result;
}

bool meets_panels_once(int64_t m, int64_t n, int64_t rows) {
  const Split split(m, n, rows);
  return split.blocks == 1 && at::get_num_threads() <= split.groups;
}

template <typename T>
at::Tensor outer_product(const Operand<T>& a, const Operand<T>& b, int64_t rows,
                         const OuterProduct& form, const at::Tensor& like,
                         const PanelStep<T>& step) {
  const bool with_ones = form.with_ones, symmetric = form.symmetric;
  const bool transposed = form.transposed;
  float* const sums = form.sums;
  const BlockKernels<T>& kernel = block_kernels<T>();
  const int64_t own = a.channels, m = own + (with_ones ? 1 : 0), n = b.channels;
  const int64_t lda = staggered(symmetric ? padded_columns(m) : m);
  const Split split(own, n, rows);
  // what is summed up afterwards need not lie as the result does
  const int64_t ldc = split.groups > 1 ? staggered(padded_columns(n)) : padded_columns(n);
  const int64_t ldb = staggered(split.widest());
  at::Tensor partial = at::empty({split.groups, m, ldc}, like.options().dtype(at::kFloat));
  const int64_t row_bytes = 4 * (lda + ldb);
  std::vector<Rows> panels;  // group by group
  std::vector<int64_t> starts{0};
  int64_t most = 0;
  for (int64_t group = 0; group < split.groups; ++group) {
    const int64_t from = rows * group / split.groups / 2 * 2;
    const bool last = group + 1 == split.groups;
    const int64_t to = last ? rows : rows * (group + 1) / split.groups / 2 * 2;
    const Panels own_panels(to - from, row_bytes, kPairOfPanelsBytes, kRowsOfMostPanels);
    for (int64_t p = 0; p < own_panels.count(); ++p) {
      panels.push_back({from + own_panels.first(p), own_panels.rows(p)});
      most = std::max(most, own_panels.rows(p));
    }
    starts.push_back(static_cast<int64_t>(panels.size()));
  }
  const int64_t count_of_panels = static_cast<int64_t>(panels.size());
  std::vector<float> panel_sums(sums == nullptr ? 0 : count_of_panels * own, 0.0f);
  const auto pack_a = [&](int64_t p, float* to, bool with_sums) {
    kernel.pack(a, panels[p].first, panels[p].count, Order::transposed, lda, to,
                with_sums && sums != nullptr ? panel_sums.data() + p * own : nullptr);
    if (with_ones) write_ones(to + own, panels[p].count, lda, kernel.pairs);
  };
  // Where many blocks of columns read the first operand it is packed once for all of them.
  const bool ahead = split.blocks > 2;
  const int64_t panel_units = (kernel.pairs ? (most + 1) / 2 : most) * lda;
  Scratch scratch(most * row_bytes);
  Shared packed(ahead ? count_of_panels * panel_units * 4 : 0);
  if (ahead) {
    in_turns(count_of_panels,
             [&](int64_t p) { pack_a(p, packed.floats() + p * panel_units, true); });
  }
  const bool as_it_lies =
      kernel.accumulate_rows != nullptr && !symmetric && is_plain(b) && n % kTileColumns == 0;
  float* const all = partial.mutable_data_ptr<float>();
  const int64_t items = split.groups * split.blocks;
  in_turns(items, [&](int64_t turn) {
    // blocks of a triangle differ in size: the largest come first
    const int64_t group = turn % split.groups, block = split.blocks - 1 - turn / split.groups;
    const int64_t column = split.column(block);
    const int64_t width = std::min(n, split.column(block + 1)) - column;
    float* const c = all + group * m * ldc + column;
    float* const mine = reinterpret_cast<float*>(scratch.mine());
    float* const units_b = mine + most * lda;
    for (int64_t p = starts[group]; p < starts[group + 1]; ++p) {
      const float* units_a = packed.floats() + p * panel_units;
      const auto [first, count] = panels[p];
      if (step) {
        kernel.pack(step(first, count), 0, count, Order::transposed, lda, mine, nullptr);
        units_a = mine;
      } else if (!ahead) {
        pack_a(p, mine, block == 0);  // once for all blocks
        units_a = mine;
      }
      if (as_it_lies && count % 2 == 0) {
        const PlainRows<T> rows_b(b.columns(column, width), first);
        kernel.accumulate_rows(units_a, lda, m, rows_b.start, rows_b.step, width, count, c, ldc,
                               p > starts[group]);
        continue;
      }
      if (!symmetric) {
        kernel.pack(b.columns(column, width), first, count, Order::transposed, ldb, units_b,
                    nullptr);
      }
      kernel.accumulate(units_a, lda, m, symmetric ? units_a + column : units_b,
                        symmetric ? lda : ldb, width, count, c, ldc, symmetric ? column : m,
                        p > starts[group]);
    }
  });
  const bool finished = split.groups == 1 && ldc == n && !symmetric && !transposed;
  const at::Tensor result =
      finished ? partial.view({m, n}) : sum_of_groups(partial, n, transposed);
  for (int64_t i = 0; symmetric && i < m; ++i) {
    float* const out = result.mutable_data_ptr<float>();
    for (int64_t j = 0; j < i; ++j) out[i * n + j] = out[j * n + i];
  }
  for (int64_t i = 0; sums != nullptr && i < own; ++i) {
    double total = 0.0;
    for (int64_t p = 0; p < count_of_panels; ++p) total += panel_sums[p * own + i];
    sums[i] = static_cast<float>(total);
  }
  return result;
}

template class PackedWeight<float>;
template class PackedWeight<bf16>;
template Factor factor(const Operand<float>&, int64_t, int64_t, const PackedWeight<float>&, void*);
template Factor factor(const Operand<bf16>&, int64_t, int64_t, const PackedWeight<bf16>&, void*);
template at::Tensor outer_product(const Operand<float>&, const Operand<float>&, int64_t,
                                  const OuterProduct&, const at::Tensor&, const PanelStep<float>&);
template at::Tensor outer_product(const Operand<bf16>&, const Operand<bf16>&, int64_t,
                                  const OuterProduct&, const at::Tensor&, const PanelStep<bf16>&);

}  // namespace fastres
