// Batch statistics, the join act(bn(y) + shortcut), and its backward pass.

#include "../common/pad_shortcut_index.h"
#include "activation.h"
#include "operators.h"
#include "pool.h"

namespace fastres {
namespace {

std::vector<float> lanes_of(const at::Tensor& vector) {
  const at::Tensor v = vector.to(at::kFloat).contiguous();
  const float* values = v.const_data_ptr<float>();
  return repeated(v.numel(), [&](int64_t c) { return values[c]; });
}

template <typename T>
const T* at_image(const at::Tensor& t, int64_t image) {
  return t.defined() ? data<T>(t) + image * (t.numel() / std::max<int64_t>(1, t.size(0))) : nullptr;
}

PadShortcutIndex pad_index(at::IntArrayRef in, int64_t channels_out, int64_t stride) {
  return PadShortcutIndex::make(in[2], in[3], in[1], channels_out, stride);
}

}  // namespace

BranchLanes::BranchLanes(const at::Tensor& mean_, const at::Tensor& invstd_,
                         const OptionalTensor& weight, const OptionalTensor& bias_)
    : mean(lanes_of(mean_)), invstd(lanes_of(invstd_)), scale(invstd) {
  if (weight.has_value()) {
    const std::vector<float> gamma = lanes_of(*weight);
    for (size_t l = 0; l < scale.size(); ++l) {
      scale[l] *= gamma[l];
    }
  }
  bias = bias_.has_value() ? lanes_of(*bias_) : std::vector<float>(mean.size(), 0.0f);
}

GradientLanes::GradientLanes(const BranchLanes& branch, const OptionalTensor& mean_g,
                             const OptionalTensor& mean_gx)
    : a(branch.scale) {
  if (!mean_gx.has_value()) {
    return;
  }
  const std::vector<float> g = lanes_of(*mean_g), gx = lanes_of(*mean_gx);
  b.resize(a.size());
  c.resize(a.size());
  for (size_t l = 0; l < a.size(); ++l) {
    b[l] = -a[l] * branch.invstd[l] * gx[l];
    c[l] = -a[l] * g[l];
  }
}

namespace {

// Rounding can take M2 below zero; NaN stays.
double at_least_zero(double v) { return v < 0.0 ? 0.0 : v; }

}  // namespace

template <typename T>
void BatchStatistics::measure(int64_t block, const T* y, int64_t rows) {
  const int64_t values = rows * channels_, period = period_of(channels_);
  std::vector<float> lanes(3 * period);
  float *pivot = lanes.data(), *sum = pivot + period, *squares = sum + period;
  kernels<T>().statistics(y, values, period, pivot, sum, squares);
  rows_[block] = rows;
  double* mean = partial_.data() + block * 2 * channels_;
  double* m2 = mean + channels_;
  // Lanes c, c + C, c + 2C ... of a period hold channel c; all are shifted to lane c's pivot.
  for (int64_t from = 0; from < std::min(period, values); from += channels_) {
    const double n = static_cast<double>((values - 1 - from) / period + 1);
    for (int64_t c = 0; c < channels_; ++c) {
      const int64_t l = from + c;
      const double shift = static_cast<double>(pivot[l]) - pivot[c];
      mean[c] += sum[l] + n * shift;
      m2[c] += squares[l] + shift * (2.0 * sum[l] + n * shift);
    }
  }
  const double share = 1.0 / static_cast<double>(rows);
  for (int64_t c = 0; c < channels_; ++c) {
    const double offset = mean[c] * share;
    m2[c] = at_least_zero(m2[c] - mean[c] * offset);
    mean[c] = pivot[c] + offset;
  }
}

template void BatchStatistics::measure(int64_t, const float*, int64_t);
template void BatchStatistics::measure(int64_t, const bf16*, int64_t);

std::tuple<at::Tensor, at::Tensor> BatchStatistics::totals(const at::Tensor& like) const {
  std::vector<double> mean(channels_, 0.0), m2(channels_, 0.0);
  double before = 0.0;
  for (size_t block = 0; block < rows_.size(); ++block) {
    const double* block_mean = partial_.data() + block * 2 * channels_;
    const double* block_m2 = block_mean + channels_;
    const double n = static_cast<double>(rows_[block]);
    const double share = n / (before + n), cross = before * share;
    for (int64_t c = 0; c < channels_; ++c) {
      const double delta = block_mean[c] - mean[c];
      mean[c] += delta * share;
      m2[c] += block_m2[c] + delta * delta * cross;
    }
    before += n;
  }
  at::Tensor mean_out = empty_vector(channels_, like), var_out = empty_vector(channels_, like);
  float *m = mean_out.mutable_data_ptr<float>(), *v = var_out.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels_; ++c) {
    m[c] = static_cast<float>(mean[c]);
    v[c] = rows_.empty() ? 0.0f : static_cast<float>(m2[c] / before);
  }
  return {mean_out, var_out};
}

std::tuple<at::Tensor, at::Tensor> bn_stats(const at::Tensor& y_) {
  const PoolScope pool;
  const at::Tensor y = dense(y_);
  const int64_t channels = y.size(1), rows = y.numel() / std::max<int64_t>(1, channels);
  const Blocks blocks(rows, channels);
  BatchStatistics statistics(channels, blocks.count());
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    blocks.each_from_the_end([&](int64_t block, int64_t first, int64_t) {
      statistics.measure(block, data<T>(y) + first, blocks.rows(block));
    });
  });
  return statistics.totals(y);
}

at::Tensor bn_apply(const at::Tensor& y_, const at::Tensor& mean, const at::Tensor& invstd,
                    const OptionalTensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& shortcut_, const OptionalTensor& s_mean,
                    const OptionalTensor& s_invstd, const OptionalTensor& s_weight,
                    const OptionalTensor& s_bias, int64_t shortcut_stride, bool relu) {
  const PoolScope pool;
  const at::Tensor y = dense(y_);
  at::Tensor out = empty_dense(y.sizes(), y);
  const BranchLanes branch(mean, invstd, weight, bias);
  BranchLanes s_branch;
  Shortcut kind = Shortcut::none;
  at::Tensor shortcut;
  if (shortcut_.has_value()) {
    shortcut = dense(*shortcut_);
    kind = Shortcut::identity;
  }
  if (s_mean.has_value()) {
    kind = Shortcut::bn;
    s_branch = BranchLanes(*s_mean, *s_invstd, s_weight, s_bias);
  }
  const int64_t channels = y.size(1), rows = y.numel() / std::max<int64_t>(1, channels);
  const Blocks blocks(rows, channels);
  const bool padded = kind == Shortcut::identity && shortcut.sizes() != y.sizes();
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *from = data<T>(y), *beside = shortcut.defined() ? data<T>(shortcut) : nullptr;
    T* to = mutable_data<T>(out);
    if (padded) {
      const PadShortcutIndex index = pad_index(shortcut.sizes(), channels, shortcut_stride);
      blocks.each([&](int64_t, int64_t first, int64_t values) {
        for (int64_t i = first; i < first + values; i += channels) {
          kernels<T>().apply_pad_row(from + i, to + i, channels, branch.vectors(),
                                     beside + index.input_row(i / channels) * index.channels_in,
                                     index.channels_in, relu);
        }
      });
      return;
    }
    blocks.each([&](int64_t, int64_t first, int64_t values) {
      kernels<T>().apply(from + first, to + first, values, period_of(channels), branch.vectors(),
                         beside == nullptr ? nullptr : beside + first, s_branch.vectors(), kind,
                         relu);
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_backward_reduce(
    const at::Tensor& dout_, const OptionalTensor& out_, const at::Tensor& y_,
    const at::Tensor& mean, const at::Tensor& invstd, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& shortcut_, const OptionalTensor& s_mean,
    const OptionalTensor& s_invstd, bool relu) {
  const PoolScope pool;
  const at::Tensor dout = dense(dout_), y = dense(y_);
  const at::Tensor out = out_.has_value() ? dense(*out_) : at::Tensor();
  const bool second = s_mean.has_value();
  const at::Tensor shortcut = second ? dense(*shortcut_) : at::Tensor();
  const BranchLanes branch(mean, invstd, weight, bias);
  const BranchLanes s_branch =
      second ? BranchLanes(*s_mean, *s_invstd, std::nullopt, std::nullopt) : BranchLanes();
  const int64_t channels = y.size(1), rows = y.numel() / std::max<int64_t>(1, channels);
  const Blocks blocks(rows, channels);
  const int64_t period = period_of(channels), sums = second ? 3 : 2;
  std::vector<float> partial(blocks.count() * sums * channels);
  for_type(y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    blocks.each_from_the_end([&](int64_t block, int64_t first, int64_t values) {
      std::vector<float> lanes(3 * period);
      float* lane = lanes.data();
      kernels<T>().reduce(data<T>(dout) + first, out.defined() ? data<T>(out) + first : nullptr,
                          data<T>(y) + first, second ? data<T>(shortcut) + first : nullptr, values,
                          period, branch.vectors(), second ? s_branch.mean.data() : nullptr, relu,
                          lane, lane + period, lane + 2 * period);
      float* to = partial.data() + block * sums * channels;
      for (int64_t s = 0; s < sums; ++s) {
        for (int64_t c = 0; c < channels; ++c) {
          float total = 0.0f;
          for (int64_t l = c; l < period; l += channels) {
            total += lane[s * period + l];
          }
          to[s * channels + c] = total;
        }
      }
    });
  });
  std::vector<double> total(sums * channels, 0.0);
  for (int64_t block = 0; block < blocks.count(); ++block) {
    for (int64_t i = 0; i < sums * channels; ++i) {
      total[i] += partial[block * sums * channels + i];
    }
  }
  at::Tensor result[3] = {empty_vector(channels, y), empty_vector(channels, y),
                          empty_vector(second ? channels : 0, y)};
  for (int64_t s = 0; s < sums; ++s) {
    float* to = result[s].mutable_data_ptr<float>();
    for (int64_t c = 0; c < channels; ++c) {
      const float scale = s == 0 ? 1.0f : s == 1 ? branch.invstd[c] : s_branch.invstd[c];
      to[c] = static_cast<float>(total[s * channels + c] * scale);
    }
  }
  return {result[0], result[1], result[2]};
}

JoinBackward::JoinBackward(const OptionalTensor& out, const at::Tensor& y, const at::Tensor& mean,
                           const at::Tensor& invstd, const OptionalTensor& weight,
                           const OptionalTensor& bias, const OptionalTensor& mean_g,
                           const OptionalTensor& mean_gx, const OptionalTensor& shortcut,
                           const OptionalTensor& s_mean, const OptionalTensor& s_invstd,
                           const OptionalTensor& s_weight, const OptionalTensor& mean_gx_s,
                           at::IntArrayRef shortcut_size, int64_t shortcut_stride, bool relu)
    : out_(out.has_value() ? dense(*out) : at::Tensor()),
      y_(dense(y)),
      branch_(mean, invstd, weight, bias),
      gradient_(branch_, mean_g, mean_gx),
      shortcut_size_(shortcut_size.vec()),
      shortcut_stride_(shortcut_stride),
      relu_(relu) {
  const bool wanted = !shortcut_size_.empty();
  if (wanted && s_mean.has_value()) {
    shortcut_ = dense(*shortcut);
    s_branch_ = BranchLanes(*s_mean, *s_invstd, s_weight, std::nullopt);
    s_gradient_ = GradientLanes(s_branch_, mean_g, mean_gx_s);
  }
  padded_ = wanted && !shortcut_.defined() && shortcut_size != y_.sizes();
}

at::Tensor JoinBackward::empty_shortcut_gradient() const {
  return shortcut_size_.empty() ? nothing(y_) : empty_dense(shortcut_size_, y_);
}

void JoinBackward::run(const at::Tensor& dout, int64_t first, at::Tensor& dy,
                       at::Tensor& dshortcut) const {
  const int64_t channels = y_.size(1), rows = dy.numel() / std::max<int64_t>(1, channels);
  const Blocks blocks(rows, channels);
  const bool wanted = !shortcut_size_.empty() && !padded_;
  for_type(y_.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *g = at_image<T>(dout, first), *out = at_image<T>(out_, first);
    const T *y = at_image<T>(y_, first), *s_y = at_image<T>(shortcut_, first);
    T* to = mutable_data<T>(dy);
    T* beside = wanted ? const_cast<T*>(at_image<T>(dshortcut, first)) : nullptr;
    blocks.each([&](int64_t, int64_t i, int64_t values) {
      kernels<T>().backward(g + i, out == nullptr ? nullptr : out + i, y + i,
                            s_y == nullptr ? nullptr : s_y + i, values, period_of(channels),
                            branch_.vectors(), gradient_.vectors(), s_branch_.mean.data(),
                            s_gradient_.vectors(), relu_, to + i,
                            beside == nullptr ? nullptr : beside + i);
    });
    if (padded_) {
      run_padded<T>(g, out, first, dy.size(0), dshortcut);
    }
  });
}

template <typename T>
void JoinBackward::run_padded(const T* dout, const T* out, int64_t first, int64_t images,
                              at::Tensor& dshortcut) const {
  const PadShortcutIndex index = pad_index(shortcut_size_, y_.size(1), shortcut_stride_);
  const int64_t channels = index.channels_in;
  T* to = const_cast<T*>(at_image<T>(dshortcut, first));
  const Blocks blocks(images * index.height_in * index.width_in, channels);
  blocks.each([&](int64_t, int64_t begin, int64_t values) {
    for (int64_t i = begin; i < begin + values; i += channels) {
      const int64_t row = index.output_row(i / channels);
      if (row < 0) {
        std::fill_n(to + i, channels, T{});
      } else {
        const int64_t from = row * index.channels_out;
        kernels<T>().mask_row(dout + from, relu_ ? out + from : nullptr, channels, to + i);
      }
    }
  });
}

std::tuple<at::Tensor, at::Tensor> bn_backward(FASTRES_BACKWARD_PARAMETERS) {
  const PoolScope pool;
  const JoinBackward join(FASTRES_JOIN_ARGUMENTS);
  at::Tensor dy = empty_dense(y.sizes(), y), dshortcut = join.empty_shortcut_gradient();
  join.run(dense(dout), 0, dy, dshortcut);
  return {dy, dshortcut};
}

}  // namespace fastres
