#include "winograd.h"

#include "block_rows.h"
#include "winograd_kernels.h"

namespace fastres {
namespace {

using at::Tensor;

// Values behind each position: at a power of two all sixteen would meet in one set of the cache.
constexpr int64_t kStagger = 80;

constexpr int64_t kLeastTiles = 128;

// The tiles of a batch of images.
struct Tiles {
  explicit Tiles(const Tensor& image)
      : images(image.size(0)),
        height(image.size(2)),
        width(image.size(3)),
        down((height + 1) / 2),
        across((width + 1) / 2) {}

  int64_t count() const { return images * down * across; }

  // Pointers to size x size pixels of `tile` from (row, column) = (origin, origin) of it on;
  // `outside` where there is no such pixel.
  template <typename P>
  void pixels(P* base, int64_t channels, int64_t tile, int64_t size, int64_t origin, P* outside,
              P** to) const {
    const int64_t image = tile / (down * across), place = tile % (down * across);
    const int64_t top = place / across * 2 + origin, left = place % across * 2 + origin;
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        const int64_t h = top + i, w = left + j;
        const bool inside = h >= 0 && h < height && w >= 0 && w < width;
        to[i * size + j] = inside ? base + ((image * height + h) * width + w) * channels : outside;
      }
    }
  }

  int64_t images, height, width, down, across;
};

// All positions of a weight as packed matrices [depth, columns].
struct Filters {
  Filters(const Tensor& weight, bool backward)
      : depth(weight.size(backward ? 0 : 1)), columns(weight.size(backward ? 1 : 0)) {
    const Tensor w = weight.contiguous();
    const int64_t blocks = padded_columns(columns) / kTileColumns;
    step = depth * padded_columns(columns) + kStagger;
    units = at::empty({kPositions * step + 16}, w.options());
    const float* const taps = w.const_data_ptr<float>();
    float* const to = units.mutable_data_ptr<float>();
    const int64_t in = 9, out = 9 * w.size(1);
    in_turns(blocks, [&](int64_t b) {
      const int64_t first = b * kTileColumns;
      winograd_kernels().weight(taps + first * (backward ? in : out), backward ? out : in,
                                backward ? in : out, depth,
                                std::min(kTileColumns, columns - first), backward,
                                to + first * depth, step);
    });
  }

  // Those of a weight [columns, depth, 3, 3] that were made before.
  Filters(Tensor made, int64_t depth_, int64_t columns_)
      : depth(depth_),
        columns(columns_),
        step(depth_ * padded_columns(columns_) + kStagger),
        units(std::move(made)) {}

  int64_t depth, columns, step;
  Tensor units;
};

// What is done to a pixel of the output while it is in the first cache.
struct Finish {
  const float* shortcut = nullptr;
  bool relu = false;

  // `outside` is no pixel of `base`.
  void run(float* pixel, int64_t channels, const float* base, const float* outside) const {
    if (pixel == outside) return;
    const float* const other = shortcut == nullptr ? nullptr : shortcut + (pixel - base);
    for (int64_t c = 0; other != nullptr && c < channels; ++c) pixel[c] += other[c];
    for (int64_t c = 0; relu && c < channels; ++c) pixel[c] = pixel[c] < 0.0f ? 0.0f : pixel[c];
  }
};

// The position whose value A^T m A adds to all four pixels of a tile.
constexpr int64_t kEveryPixel = 5;

Tensor convolve_tiles(const Tensor& x, const Filters& filters, const float* bias = nullptr,
                      const Finish& finish = {}) {
  const bool finishes = finish.shortcut != nullptr || finish.relu;
  const WinogradKernels& kernel = winograd_kernels();
  const int64_t in = filters.depth, out = filters.columns;
  const int64_t ldv = staggered(in), ldc = staggered(padded_columns(out));
  Tensor y = empty_dense({x.size(0), out, x.size(2), x.size(3)}, x);
  const Tiles tiles(x);
  // at least 128 tiles a panel: every panel reads all filters
  const int64_t row_bytes = kPositions * 4 * (ldv + ldc);
  const Panels panels(tiles.count(), row_bytes,
                      std::max<int64_t>(int64_t{640} << 10, 128 * row_bytes));
  // a few images are split among all threads all the same
  const int64_t total = tiles.count(), threads = at::get_num_threads();
  const bool few = bias != nullptr && total < 128 * threads;
  const int64_t pieces = few ? std::clamp<int64_t>(total / 14, 1, threads) : panels.count();
  const int64_t most = few ? (total + pieces - 1) / pieces : panels.most();
  const int64_t v_step = most * ldv + kStagger, m_step = most * ldc + kStagger;
  Scratch scratch((kPositions * (v_step + m_step) + 2 * std::max(in, ldc)) * 4);
  const float* const from = data<float>(x);
  const float* const units = filters.units.const_data_ptr<float>();
  float* const to = mutable_data<float>(y);
  in_turns(total == 0 ? 0 : pieces, [&](int64_t p) {
    float* const v = reinterpret_cast<float*>(scratch.mine());
    float* const m = v + kPositions * v_step;
    float* const nowhere = m + kPositions * m_step;
    float* const zeros = nowhere + std::max(in, ldc);
    std::fill_n(zeros, in, 0.0f);
    const int64_t first = few ? total * p / pieces : panels.first(p);
    const int64_t count = few ? total * (p + 1) / pieces - first : panels.rows(p);
    const float* pixels[16];
    for (int64_t t = 0; t < count; ++t) {
      tiles.pixels<const float>(from, in, first + t, 4, -1, zeros, pixels);
      kernel.input(pixels, in, v + t * ldv, v_step);
    }
    for (int64_t i = 0; i < kPositions; ++i) {
      kernel.product(v + i * v_step, ldv, count, in, units + i * filters.step, out,
                     m + i * m_step, ldc);
    }
    for (int64_t t = 0; bias != nullptr && t < count; ++t) {
      float* const row = m + kEveryPixel * m_step + t * ldc;
      for (int64_t c = 0; c < out; ++c) row[c] += bias[c];
    }
    float* targets[4];
    for (int64_t t = 0; t < count; ++t) {
      tiles.pixels<float>(to, out, first + t, 2, 0, nowhere, targets);
      kernel.output(m + t * ldc, m_step, out, targets);
      for (int64_t i = 0; finishes && i < 4; ++i) finish.run(targets[i], out, to, nowhere);
    }
  });
  return y;
}

// Tiles in groups, input and output channels in blocks: the sixteen matrices of a piece stay in
// the second cache.
struct Pieces {
  Pieces(int64_t in, int64_t out, int64_t tiles) {
    constexpr int64_t kPiece = int64_t{1} << 17, kPartials = int64_t{1} << 20;  // values
    in_block = std::min<int64_t>(in, 256);
    out_block = std::clamp<int64_t>(kPiece / kPositions / in_block / kTileColumns * kTileColumns,
                                    kTileColumns, padded_columns(out));
    in_blocks = (in + in_block - 1) / in_block;
    out_blocks = (out + out_block - 1) / out_block;
    groups = std::clamp<int64_t>(std::min(kPartials / (kPositions * in * out), tiles / 256), 1, 16);
  }
  int64_t count() const { return groups * in_blocks * out_blocks; }

  int64_t in_block, out_block, in_blocks, out_blocks, groups;
};

}  // namespace

bool winograd_serves(const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  if (x.scalar_type() != at::kFloat || !is_plain_3x3(weight, stride, padding, dilation, groups) ||
      weight.size(0) % kTileColumns != 0 || weight.size(1) % kTileColumns != 0) {
    return false;
  }
  // tiles that reach over the edge waste what others gain, and a few do not repay the transforms
  // of the weight
  const int64_t tiles = Tiles(x).count(), pixels = x.size(0) * x.size(2) * x.size(3);
  return tiles >= kLeastTiles && 8 * tiles <= 3 * pixels;
}

Tensor winograd_forward(const Tensor& x, const Tensor& weight) {
  return convolve_tiles(x, Filters(weight, false));
}

Tensor winograd_filters(const Tensor& weight) { return Filters(weight, false).units; }

Tensor winograd_finished(const Tensor& x, const Tensor& filters, const Tensor& bias,
                         const Tensor& shortcut, bool relu) {
  const Filters made(filters, x.size(1), bias.size(0));
  return convolve_tiles(x, made, bias.const_data_ptr<float>(),
                        {shortcut.defined() ? data<float>(shortcut) : nullptr, relu});
}

Tensor winograd_backward_data(const Tensor& dy, const Tensor& weight) {
  return convolve_tiles(dy, Filters(weight, true));
}

Tensor winograd_backward_weight(const Tensor& dy, const Tensor& x) {
  const WinogradKernels& kernel = winograd_kernels();
  const BlockKernels<float>& blocks = block_kernels<float>();
  const int64_t in = x.size(1), out = dy.size(1), ld = padded_columns(out);
  const Tiles tiles(x);
  const Pieces pieces(in, out, tiles.count());
  const int64_t step = in * ld, group_step = kPositions * step;
  Tensor sums = at::empty({pieces.groups * group_step}, x.options());
  float* const all = sums.mutable_data_ptr<float>();
  constexpr int64_t kTiles = 64;
  const int64_t ldv = staggered(pieces.in_block), ldm = staggered(pieces.out_block);
  const int64_t v_step = kTiles * ldv + kStagger, m_step = kTiles * ldm + kStagger;
  Scratch scratch((kPositions * (v_step + m_step) + std::max(in, ld)) * 4);
  const float *const from_x = data<float>(x), *const from_dy = data<float>(dy);
  in_turns(pieces.count(), [&](int64_t piece) {
    float* const v = reinterpret_cast<float*>(scratch.mine());
    float* const m = v + kPositions * v_step;
    float* const zeros = m + kPositions * m_step;
    std::fill_n(zeros, std::max(in, ld), 0.0f);
    const int64_t group = piece / (pieces.in_blocks * pieces.out_blocks);
    const int64_t i0 = piece / pieces.out_blocks % pieces.in_blocks * pieces.in_block;
    const int64_t j0 = piece % pieces.out_blocks * pieces.out_block;
    const int64_t ins = std::min(pieces.in_block, in - i0);
    const int64_t outs = std::min(pieces.out_block, out - j0);
    float* const c = all + group * group_step + i0 * ld + j0;
    const int64_t begins = tiles.count() * group / pieces.groups;
    const int64_t last = tiles.count() * (group + 1) / pieces.groups;
    for (int64_t first = begins; first < last; first += kTiles) {
      const int64_t count = std::min(kTiles, last - first);
      const float* pixels[16];
      for (int64_t t = 0; t < count; ++t) {
        tiles.pixels<const float>(from_x + i0, in, first + t, 4, -1, zeros, pixels);
        kernel.input(pixels, ins, v + t * ldv, v_step);
        tiles.pixels<const float>(from_dy + j0, out, first + t, 2, 0, zeros, pixels);
        kernel.gradient(pixels, outs, m + t * ldm, m_step);
      }
      for (int64_t i = 0; i < kPositions; ++i) {
        blocks.accumulate(v + i * v_step, ldv, ins, m + i * m_step, ldm, outs, count,
                          c + i * step, ld, ins, first > begins);
      }
    }
  });
  Tensor dw = at::empty({out, in, 3, 3}, x.options());
  float* const taps = dw.mutable_data_ptr<float>();
  const int64_t strips = in / kWinogradChannels, columns = ld / kTileColumns;
  in_turns(strips * columns, [&](int64_t s) {
    const int64_t i = s / columns * kWinogradChannels, j = s % columns * kTileColumns;
    kernel.weight_gradient(all + i * ld + j, ld, step, pieces.groups, group_step,
                           kWinogradChannels, std::min(kTileColumns, out - j),
                           taps + (j * in + i) * 9, 9 * in);
  });
  return dw;
}

}  // namespace fastres
