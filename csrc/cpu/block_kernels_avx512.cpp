#if defined(__x86_64__)
#include <immintrin.h>

#include "block_kernels.h"
#include "moment_kernels.h"
#include "winograd_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif

#define FASTRES_VECTOR_BYTES 64
#include "kernels_impl.h"
#include "gemm_impl.h"
#include "pack_impl.h"
#include "block_kernels_impl.h"
#include "moments_impl.h"
#include "winograd_impl.h"

namespace fastres {
const BlockKernels<float> block_kernels_float_avx512 = block_table<float, Single, false>();
const BlockKernels<bf16> block_kernels_bf16_avx512 = block_table<bf16, Single, false>();
const MomentKernels<float> moment_kernels_float_avx512 = moment_table<float>();
const MomentKernels<bf16> moment_kernels_bf16_avx512 = moment_table<bf16>();
const WinogradKernels winograd_avx512 = winograd_table();
}  // namespace fastres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
