// Host side of shortcut option A on a GPU: checks, memory and registration.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "common/pad_shortcut_index.h"
#include "cuda/pad_shortcut_launch.h"

namespace fastres {
namespace {

// The grid's second axis has 65535 blocks of 256 threads with one channel each.
constexpr int64_t kMostChannels = 65535 * 256;

Element element_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Element::kFloat32;
    case at::kHalf:
      return Element::kFloat16;
    case at::kBFloat16:
      return Element::kBFloat16;
    default:
      TORCH_CHECK(false, "dtype must be float32, float16 or bfloat16, got ",
                  tensor.scalar_type());
  }
}

void check_tensor(const at::Tensor& tensor, const char* name, const at::Tensor& anchor) {
  TORCH_CHECK(tensor.dim() == 4, name, " must have 4 dimensions, got ", tensor.dim());
  TORCH_CHECK(tensor.device() == anchor.device(), name, " must be on ", anchor.device(), ", got ",
              tensor.device());
  TORCH_CHECK(tensor.scalar_type() == anchor.scalar_type(), name, " must be ",
              anchor.scalar_type(), ", got ", tensor.scalar_type());
}

PadShortcutIndex checked_index(at::IntArrayRef size_in, int64_t out_channels, int64_t stride) {
  TORCH_CHECK(size_in.size() == 4, "size must have 4 entries, got ", size_in.size());
  TORCH_CHECK(stride >= 1, "stride must be at least 1, got ", stride);
  TORCH_CHECK(out_channels >= size_in[1], "out_channels must be at least the input's ", size_in[1],
              ", got ", out_channels);
  TORCH_CHECK(out_channels <= kMostChannels, "out_channels must be at most ", kMostChannels,
              ", got ", out_channels);
  return PadShortcutIndex::make(size_in[2], size_in[3], size_in[1], out_channels, stride);
}

void check_output_size(const at::Tensor& tensor, const char* name, int64_t batch,
                       const PadShortcutIndex& index) {
  TORCH_CHECK(tensor.size(0) == batch && tensor.size(2) == index.height_out &&
                  tensor.size(3) == index.width_out,
              name, " must be [", batch, ", ", index.channels_out, ", ", index.height_out, ", ",
              index.width_out, "] for this shortcut and stride, got ", tensor.sizes());
}

at::Tensor dense(const at::Tensor& tensor) {
  return tensor.contiguous(at::MemoryFormat::ChannelsLast);
}

at::Tensor empty_dense(at::IntArrayRef size, const at::Tensor& like) {
  return at::empty(size, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

// A per-channel vector as dense fp32 on y's device; undefined where there is none.
at::Tensor per_channel(const std::optional<at::Tensor>& tensor, const char* name,
                       const at::Tensor& y) {
  if (!tensor.has_value() || !tensor->defined()) {
    return {};
  }
  TORCH_CHECK(tensor->device() == y.device(), name, " must be on ", y.device(), ", got ",
              tensor->device());
  TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == y.size(1), name, " must be [", y.size(1),
              "], got ", tensor->sizes());
  return tensor->to(at::kFloat).contiguous();
}

const float* floats(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

const void* address(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

template <typename Arguments>
void run(const Arguments& arguments, const at::Tensor& anchor, const PadShortcutIndex& index,
         int64_t rows) {
  launch(arguments, element_of(anchor), index, rows, c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor pad_shortcut(const at::Tensor& x, int64_t out_channels, int64_t stride) {
  check_tensor(x, "x", x);
  const auto index = checked_index(x.sizes(), out_channels, stride);
  const c10::cuda::CUDAGuard guard(x.device());
  const auto input = dense(x);
  auto out = empty_dense({x.size(0), out_channels, index.height_out, index.width_out}, x);
  if (out.numel() == 0) {
    return out;
  }
  const int64_t rows = out.numel() / out_channels;
  run(PadShortcutArguments{address(input), out.mutable_data_ptr()}, x, index, rows);
  return out;
}

at::Tensor pad_shortcut_backward(const at::Tensor& dout, at::IntArrayRef size, int64_t stride) {
  check_tensor(dout, "dout", dout);
  const auto index = checked_index(size, dout.size(1), stride);
  check_output_size(dout, "dout", size[0], index);
  const c10::cuda::CUDAGuard guard(dout.device());
  const auto gradient = dense(dout);
  auto dx = empty_dense(size, dout);
  if (dx.numel() == 0) {
    return dx;
  }
  const int64_t rows = dx.numel() / size[1];
  run(PadShortcutBackwardArguments{address(gradient), dx.mutable_data_ptr()}, dout, index, rows);
  return dx;
}

at::Tensor bn_apply_pad(const at::Tensor& y, const at::Tensor& mean, const at::Tensor& invstd,
                        const std::optional<at::Tensor>& weight,
                        const std::optional<at::Tensor>& bias, const at::Tensor& shortcut,
                        int64_t shortcut_stride, bool relu) {
  check_tensor(y, "y", y);
  check_tensor(shortcut, "shortcut", y);
  const auto index = checked_index(shortcut.sizes(), y.size(1), shortcut_stride);
  check_output_size(y, "y", shortcut.size(0), index);
  const c10::cuda::CUDAGuard guard(y.device());
  const auto input = dense(y);
  const auto added = dense(shortcut);
  const auto center = per_channel(mean, "mean", y);
  const auto inverse = per_channel(invstd, "invstd", y);
  const auto gamma = per_channel(weight, "weight", y);
  const auto beta = per_channel(bias, "bias", y);
  auto out = empty_dense(y.sizes(), y);
  if (out.numel() == 0) {
    return out;
  }
  const int64_t rows = out.numel() / index.channels_out;
  run(BnApplyPadArguments{address(input), floats(center), floats(inverse), floats(gamma),
                          floats(beta), address(added), out.mutable_data_ptr(), relu},
      y, index, rows);
  return out;
}

std::tuple<at::Tensor, at::Tensor> bn_backward_pad(
    const at::Tensor& dout, const std::optional<at::Tensor>& out, const at::Tensor& y,
    const at::Tensor& mean, const at::Tensor& invstd, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& mean_g, const std::optional<at::Tensor>& mean_gx,
    at::IntArrayRef shortcut_size, int64_t shortcut_stride, bool relu) {
  check_tensor(y, "y", y);
  check_tensor(dout, "dout", y);
  TORCH_CHECK(dout.sizes() == y.sizes(), "dout must be ", y.sizes(), ", got ", dout.sizes());
  if (relu) {
    TORCH_CHECK(out.has_value() && out->defined(), "out must be given with relu");
    check_tensor(*out, "out", y);
    TORCH_CHECK(out->sizes() == y.sizes(), "out must be ", y.sizes(), ", got ", out->sizes());
  }
  const bool scatters = !shortcut_size.empty();
  const auto index =
      scatters ? checked_index(shortcut_size, y.size(1), shortcut_stride)
               : PadShortcutIndex::make(y.size(2), y.size(3), y.size(1), y.size(1), 1);
  if (scatters) {
    check_output_size(y, "y", shortcut_size[0], index);
  }
  const c10::cuda::CUDAGuard guard(y.device());
  const auto outputs = relu ? dense(*out) : at::Tensor();
  const auto gradient = dense(dout);
  const auto input = dense(y);
  const auto center = per_channel(mean, "mean", y);
  const auto inverse = per_channel(invstd, "invstd", y);
  const auto gamma = per_channel(weight, "weight", y);
  const auto average_g = per_channel(mean_g, "mean_g", y);
  const auto average_gx = per_channel(mean_gx, "mean_gx", y);
  auto dy = empty_dense(y.sizes(), y);
  auto dshortcut = scatters ? empty_dense(shortcut_size, y) : at::empty({0}, y.options());
  if (dy.numel() == 0) {
    return {dy, dshortcut};
  }
  const int64_t rows = dy.numel() / index.channels_out;
  run(BnBackwardPadArguments{address(gradient), address(outputs), address(input), floats(center),
                             floats(inverse), floats(gamma), floats(average_g),
                             floats(average_gx), dy.mutable_data_ptr(),
                             dshortcut.numel() > 0 ? dshortcut.mutable_data_ptr() : nullptr},
      y, index, rows);
  return {dy, dshortcut};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastres_native, CUDA, m) {
  m.impl("pad_shortcut", pad_shortcut);
  m.impl("pad_shortcut_backward", pad_shortcut_backward);
  m.impl("bn_apply_pad", bn_apply_pad);
  m.impl("bn_backward_pad", bn_backward_pad);
}

}  // namespace fastres
