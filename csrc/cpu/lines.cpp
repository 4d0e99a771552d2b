#include "lines.h"

#include "block_rows.h"

namespace fastres {
namespace {

constexpr int64_t kKernel = 3, kPlaces = kKernel * kKernel;
// Beyond it too much of a line of pixels is the zero after it.
constexpr int64_t kLeastWidth = 24;

// The pixels of [N, C, H, W] as rows, a line of zeros before every image and a zero before every
// line, in panels of whole lines.
struct Pixels {
  explicit Pixels(const at::Tensor& x) : lines(x.size(2)), wide(x.size(3) + 1) {
    constexpr int64_t kRows = 224;  // of a panel: what it shares with the next is read twice
    const int64_t fits = std::clamp<int64_t>(kRows / wide, 1, lines);
    panels_of_image = (lines + fits - 1) / fits;
    panels = x.size(0) * panels_of_image;
  }

  // The lines of a panel: from this one to that of the next.
  int64_t line(int64_t panel) const { return lines * panel / panels_of_image; }
  int64_t first(int64_t panel) const {
    const int64_t image = panel / panels_of_image;
    return (line(panel) + image + 1) * wide + 1;  // behind the zero
  }
  int64_t rows(int64_t panel) const { return (line(panel + 1) - line(panel)) * wide - 1; }
  int64_t most_rows() const { return (lines + panels_of_image - 1) / panels_of_image * wide - 1; }
  // Back to what the first place of the kernel meets.
  int64_t reach() const { return wide + 1; }

  template <typename T>
  Operand<T> operand(const at::Tensor& t, const at::Tensor& zeros) const {
    Operand<T> pixels;
    PatchesOf<T>& at = pixels.patches;
    at.base = data<T>(t);
    at.zeros = data<T>(zeros);
    pixels.channels = at.channels = t.size(1);
    at.height = lines;
    at.width = wide - 1;
    at.height_out = lines + 1;
    at.width_out = wide;
    at.kernel_w = at.stride_h = at.stride_w = at.dilation_h = at.dilation_w = 1;
    at.padding_h = at.padding_w = 1;
    return pixels;
  }

  int64_t lines, wide, panels_of_image, panels;
};

}  // namespace

bool lines_serve(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                 at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const bool pairs = for_type(
      x.scalar_type(), [](auto type) { return block_kernels<decltype(type)>().pairs; });
  return is_plain_3x3(weight, stride, padding, dilation, groups) && pairs && x.numel() > 0 &&
         x.size(1) % kTileColumns == 0 && x.size(3) >= kLeastWidth;
}

at::Tensor lines_backward_weight(const at::Tensor& dy, const at::Tensor& x) {
  return for_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const BlockKernels<T>& kernel = block_kernels<T>();
    const int64_t m = dy.size(1), inner = x.size(1), n = kPlaces * inner;
    const int64_t lda = staggered(m), ldb = staggered(inner);
    const at::Tensor zeros = at::zeros({std::max(m, inner)}, x.options());
    const Pixels pixels(x);
    const Operand<T> of_dy = pixels.operand<T>(dy, zeros), of_x = pixels.operand<T>(x, zeros);
    const int64_t groups = std::min(count_groups(m, n, x.numel() / inner), pixels.panels);
    at::Tensor partial = at::empty({groups, m, n}, x.options().dtype(at::kFloat));
    float* const all = partial.mutable_data_ptr<float>();
    const int64_t units_a = (pixels.most_rows() + 1) / 2 * lda;
    const int64_t units_b = (pixels.most_rows() / 2 + pixels.reach() + 1) * ldb;
    Scratch scratch((units_a + 2 * units_b) * 4);
    // with more threads than groups, each takes one row of the kernel: no sum is another
    const int64_t blocks = at::get_num_threads() > groups ? kKernel : 1;
    in_turns(groups * blocks, [&](int64_t turn) {
      const int64_t group = turn / blocks, block = turn % blocks;
      float* const a = reinterpret_cast<float*>(scratch.mine());
      float* const even = a + units_a;
      float* const odd = even + units_b;
      float* const c = all + group * m * n;
      const int64_t start = pixels.panels * group / groups;
      for (int64_t p = start; p < pixels.panels * (group + 1) / groups; ++p) {
        const int64_t rows = pixels.rows(p), before = pixels.first(p) - pixels.reach();
        const int64_t met = rows + 2 * pixels.reach();
        kernel.pack(of_dy, pixels.first(p), rows, Order::transposed, lda, a, nullptr);
        kernel.pack(of_x, before, met, Order::transposed, ldb, even, nullptr);
        kernel.pack(of_x, before + 1, met - 1, Order::transposed, ldb, odd, nullptr);
        for (int64_t place = kPlaces * block / blocks; place < kPlaces * (block + 1) / blocks;
             ++place) {
          const int64_t at = place / kKernel * pixels.wide + place % kKernel;
          const float* const b = (at % 2 == 0 ? even : odd) + at / 2 * ldb;
          kernel.accumulate(a, lda, m, b, ldb, inner, rows, c + place * inner, n, m, p > start);
        }
      }
    });
    const at::Tensor dw = groups == 1 ? partial[0] : sum_of_groups(partial, n);
    return dw.view({m, kKernel, kKernel, inner}).permute({0, 3, 1, 2});
  });
}

}  // namespace fastres
