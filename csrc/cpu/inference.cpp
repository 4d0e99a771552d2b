// What inference on a CPU uses beside oneDNN: Winograd's convolutions with filters that are made
// once, and the arena for the outputs of operators that are not ours.
#include <torch/library.h>

#include "block_rows.h"
#include "winograd.h"

namespace fastres {
namespace {

using at::Tensor;

void check_plain(const char* name, const Tensor& t) {
  TORCH_CHECK_VALUE(t.scalar_type() == at::kFloat && t.dim() == 4, "fastres: ", name,
                    " must be a float32 tensor of 4 dimensions, got ", t.scalar_type(), " of ",
                    t.dim());
}

Tensor make_filters(const Tensor& weight) {
  check_plain("weight", weight);
  TORCH_CHECK_VALUE(weight.size(0) % kTileColumns == 0 && weight.size(1) % kTileColumns == 0 &&
                        weight.size(2) == 3 && weight.size(3) == 3,
                    "fastres: weight must be [K, C, 3, 3] with K and C multiples of ",
                    kTileColumns, ", got ", weight.sizes());
  return winograd_filters(weight);
}

Tensor convolve(const Tensor& x_, const Tensor& filters, const Tensor& bias,
                const OptionalTensor& shortcut_, bool relu) {
  const PoolScope pool;
  check_plain("x", x_);
  const Tensor x = dense(x_), shortcut = shortcut_.has_value() ? dense(*shortcut_) : Tensor();
  const int64_t filled = 16 * x.size(1) * bias.size(0);
  TORCH_CHECK_VALUE(bias.scalar_type() == at::kFloat && bias.is_contiguous() &&
                        filters.scalar_type() == at::kFloat && filters.numel() >= filled,
                    "fastres: filters and bias must be float32, made for ", x.size(1),
                    " channels");
  if (shortcut.defined()) {
    check_plain("shortcut", shortcut);
    const std::vector<int64_t> size{x.size(0), bias.size(0), x.size(2), x.size(3)};
    TORCH_CHECK_VALUE(shortcut.sizes() == at::IntArrayRef(size), "fastres: shortcut must be ",
                      at::IntArrayRef(size), ", got ", shortcut.sizes());
  }
  return winograd_finished(x, filters, bias, shortcut, relu);
}

// One for each thread: scopes of a thread lie within each other.
thread_local std::vector<std::unique_ptr<PoolScope>> scopes;

}  // namespace
}  // namespace fastres

TORCH_LIBRARY_FRAGMENT(fastres_native, m) {
  m.def("winograd_filters(Tensor weight) -> Tensor");
  m.def(
      "winograd(Tensor x, Tensor filters, Tensor bias, Tensor? shortcut, bool relu) -> Tensor");
  // Between these two the thread's larger tensors lie in the arena, whoever allocates them.
  m.def("pool_enter() -> ()", [] {
    fastres::scopes.push_back(std::make_unique<fastres::PoolScope>());
  });
  m.def("pool_leave() -> ()", [] {
    if (!fastres::scopes.empty()) fastres::scopes.pop_back();
  });
}

TORCH_LIBRARY_IMPL(fastres_native, CPU, m) {
  m.impl("winograd_filters", &fastres::make_filters);
  m.impl("winograd", &fastres::convolve);
}
