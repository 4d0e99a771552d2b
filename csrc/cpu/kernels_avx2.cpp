#if defined(__x86_64__)
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#include "kernels_impl.h"

namespace fastres {
const Kernels<float> kernels_float_avx2 = table<float>();
const Kernels<bf16> kernels_bf16_avx2 = table<bf16>();
}  // namespace fastres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
