#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#endif

#include "kernels_impl.h"
#include "columns_impl.h"
#include "kernels_pairs_impl.h"

namespace fastres {
const Kernels<bf16> kernels_bf16_avx512bf16 = table_of_columns();
}  // namespace fastres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
