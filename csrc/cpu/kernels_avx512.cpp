#if defined(__x86_64__)
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

#include "kernels_impl.h"

namespace fastres {
const Kernels<float> kernels_float_avx512 = table<float>();
const Kernels<bf16> kernels_bf16_avx512 = table<bf16>();
}  // namespace fastres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
