// What the CPU operators share: dense activations, vectors repeated to a period, blocks of rows.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <optional>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace fastres {

using OptionalTensor = std::optional<at::Tensor>;

inline at::Tensor dense(const at::Tensor& t) {
  return t.contiguous(at::MemoryFormat::ChannelsLast);
}

inline at::Tensor empty_dense(at::IntArrayRef size, const at::Tensor& like) {
  return at::empty(size, like.options(), at::MemoryFormat::ChannelsLast);
}

inline at::Tensor nothing(const at::Tensor& like) { return at::empty({0}, like.options()); }

inline at::Tensor empty_vector(int64_t length, const at::Tensor& like) {
  return at::empty({length}, like.options().dtype(at::kFloat));
}

template <typename T>
const T* data(const at::Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* mutable_data(at::Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Runs fn with a value of the element type: float or bf16.
template <typename F>
auto for_type(at::ScalarType type, F fn) {
  if (type == at::kFloat) {
    return fn(float{});
  }
  TORCH_CHECK_TYPE(type == at::kBFloat16, "fastres: native kernels take float32 or bfloat16, got ",
                   type);
  return fn(bf16{});
}

// Rows of C channels in blocks of about 32k values: the unit of parallel work and of partial sums.
// The split depends on the shape alone, so the sums do not depend on the number of threads.
class Blocks {
 public:
  Blocks(int64_t rows, int64_t channels)
      : rows_(rows),
        channels_(channels),
        per_block_(std::max<int64_t>(1, 32768 / std::max<int64_t>(1, channels))) {}

  int64_t count() const { return (rows_ + per_block_ - 1) / per_block_; }
  int64_t first(int64_t block) const { return block * per_block_ * channels_; }
  int64_t rows(int64_t block) const { return std::min(per_block_, rows_ - block * per_block_); }
  int64_t values(int64_t block) const { return rows(block) * channels_; }
  int64_t channels() const { return channels_; }

  // fn(block, first value, number of values), in parallel.
  template <typename F>
  void each(F fn) const {
    in_turns(count(), [&](int64_t block) { fn(block, first(block), values(block)); });
  }

  // The same from the last block to the first. What was written last is still in the cache, and so
  // are the first blocks for the pass that comes next.
  template <typename F>
  void each_from_the_end(F fn) const {
    in_turns(count(), [&](int64_t turn) {
      const int64_t block = count() - 1 - turn;
      fn(block, first(block), values(block));
    });
  }

 private:
  int64_t rows_;
  int64_t channels_;
  int64_t per_block_;
};

// The period of the kernels: a multiple of C of at least 256 lanes.
inline int64_t period_of(int64_t channels) {
  return channels == 0 ? 0 : channels * std::max<int64_t>(1, (256 + channels - 1) / channels);
}

// A [C] vector repeated to the period, computed by value(channel).
template <typename F>
std::vector<float> repeated(int64_t channels, F value) {
  std::vector<float> lanes(period_of(channels));
  for (int64_t c = 0; c < channels; ++c) {
    lanes[c] = value(c);
  }
  for (size_t l = channels; l < lanes.size(); ++l) {
    lanes[l] = lanes[l - channels];
  }
  return lanes;
}

// gamma, beta and statistics of one branch as fp32 lanes of the period.
struct BranchLanes {
  BranchLanes() = default;
  BranchLanes(const at::Tensor& mean_, const at::Tensor& invstd_, const OptionalTensor& weight,
              const OptionalTensor& bias_);

  std::vector<float> mean, invstd, scale, bias;

  BranchVectors vectors() const { return {mean.data(), scale.data(), bias.data()}; }
};

// dy = a * g + b * (y - mean) + c as lanes; b and c stay empty for a frozen branch.
struct GradientLanes {
  GradientLanes() = default;
  GradientLanes(const BranchLanes& branch, const OptionalTensor& mean_g,
                const OptionalTensor& mean_gx);

  std::vector<float> a, b, c;

  GradientVectors vectors() const {
    return {a.data(), b.empty() ? nullptr : b.data(), c.empty() ? nullptr : c.data()};
  }
};

// Mean and biased variance of every channel: (mean, M2) of blocks by shifted sums about their first
// rows, merged by Chan's formula in the order of the blocks. What is merged is kept in double: beside
// a mean of 1e4 every rounding in float would be seen.
class BatchStatistics {
 public:
  BatchStatistics(int64_t channels, int64_t blocks)
      : channels_(channels), rows_(blocks, 0), partial_(blocks * 2 * channels) {}

  // `rows` dense rows, at least one; any thread, every block once.
  template <typename T>
  void measure(int64_t block, const T* y, int64_t rows);

  // (mean, var), fp32 [C]; zeros without rows.
  std::tuple<at::Tensor, at::Tensor> totals(const at::Tensor& like) const;

 private:
  int64_t channels_;
  std::vector<int64_t> rows_;
  std::vector<double> partial_;
};

// Everything bn_backward needs besides dout, unpacked once and then run slice by slice.
class JoinBackward {
 public:
  JoinBackward(const OptionalTensor& out, const at::Tensor& y, const at::Tensor& mean,
               const at::Tensor& invstd, const OptionalTensor& weight, const OptionalTensor& bias,
               const OptionalTensor& mean_g, const OptionalTensor& mean_gx,
               const OptionalTensor& shortcut, const OptionalTensor& s_mean,
               const OptionalTensor& s_invstd, const OptionalTensor& s_weight,
               const OptionalTensor& mean_gx_s, at::IntArrayRef shortcut_size,
               int64_t shortcut_stride, bool relu);

  // dy of images [first, first + dy.size(0)) into `dy`, their part of dshortcut into its place.
  void run(const at::Tensor& dout, int64_t first, at::Tensor& dy, at::Tensor& dshortcut) const;

  at::Tensor empty_shortcut_gradient() const;

 private:
  template <typename T>
  void run_padded(const T* dout, const T* out, int64_t first, int64_t images,
                  at::Tensor& dshortcut) const;

  at::Tensor out_, y_, shortcut_;
  BranchLanes branch_, s_branch_;
  GradientLanes gradient_, s_gradient_;
  std::vector<int64_t> shortcut_size_;
  int64_t shortcut_stride_;
  bool relu_;
  bool padded_;
};

}  // namespace fastres
