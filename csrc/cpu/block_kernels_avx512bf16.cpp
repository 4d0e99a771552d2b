#if defined(__x86_64__)
#include <immintrin.h>

#include "block_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16,prefer-vector-width=512")
#endif

#define FASTRES_VECTOR_BYTES 64
#define FASTRES_PAIRS
#include "kernels_impl.h"
#include "gemm_impl.h"
#include "pack_impl.h"
#include "block_kernels_impl.h"

namespace fastres {
const BlockKernels<bf16> block_kernels_bf16_avx512bf16 = block_table<bf16, Pair, true>();
}  // namespace fastres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
