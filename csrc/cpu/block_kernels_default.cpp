#include "block_kernels.h"
#include "moment_kernels.h"
#include "winograd_kernels.h"

#define FASTRES_VECTOR_BYTES 16
#include "kernels_impl.h"
#include "gemm_impl.h"
#include "pack_impl.h"
#include "block_kernels_impl.h"
#include "moments_impl.h"
#include "winograd_impl.h"

namespace fastres {

const BlockKernels<float> block_kernels_float_default = block_table<float, Single, false>();
const BlockKernels<bf16> block_kernels_bf16_default = block_table<bf16, Single, false>();
const MomentKernels<float> moment_kernels_float_default = moment_table<float>();
const MomentKernels<bf16> moment_kernels_bf16_default = moment_table<bf16>();
const WinogradKernels winograd_default = winograd_table();

namespace {

// each can do what those before it can
enum class Processor { any, avx2, avx512, avx512bf16 };

Processor processor() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma")) {
    return __builtin_cpu_supports("avx512bf16") ? Processor::avx512bf16 : Processor::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return Processor::avx2;
  }
#endif
  return Processor::any;
}

}  // namespace

// The best of kernels that are the same for all processors with AVX-512.
#if defined(__x86_64__)
#define FASTRES_BEST(kernels)                                         \
  (processor() >= Processor::avx512 ? kernels##_avx512                \
   : processor() == Processor::avx2 ? kernels##_avx2                  \
                                    : kernels##_default)
#else
#define FASTRES_BEST(kernels) kernels##_default
#endif

template <>
const BlockKernels<float>& block_kernels<float>() {
  return FASTRES_BEST(block_kernels_float);
}

template <>
const BlockKernels<bf16>& block_kernels<bf16>() {
#if defined(__x86_64__)
  switch (processor()) {
    case Processor::avx512bf16:
      return block_kernels_bf16_avx512bf16;
    case Processor::avx512:
      return block_kernels_bf16_avx512;
    case Processor::avx2:
      return block_kernels_bf16_avx2;
    case Processor::any:
      break;
  }
#endif
  return block_kernels_bf16_default;
}

template <>
const MomentKernels<float>& moment_kernels<float>() {
  return FASTRES_BEST(moment_kernels_float);
}

template <>
const MomentKernels<bf16>& moment_kernels<bf16>() {
  return FASTRES_BEST(moment_kernels_bf16);
}

const WinogradKernels& winograd_kernels() { return FASTRES_BEST(winograd); }

}  // namespace fastres
