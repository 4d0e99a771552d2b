#include "block_kernels.h"
#include "winograd_kernels.h"

#define FASTRES_VECTOR_BYTES 16
#include "kernels_impl.h"
#include "gemm_impl.h"
#include "pack_impl.h"
#include "block_kernels_impl.h"
#include "winograd_impl.h"

namespace fastres {

const BlockKernels<float> block_kernels_float_default = block_table<float, Single, false>();
const BlockKernels<bf16> block_kernels_bf16_default = block_table<bf16, Single, false>();
const WinogradKernels winograd_default = winograd_table();

namespace {

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

template <>
const BlockKernels<float>& block_kernels<float>() {
#if defined(__x86_64__)
  switch (processor()) {
    case Processor::avx512bf16:
    case Processor::avx512:
      return block_kernels_float_avx512;
    case Processor::avx2:
      return block_kernels_float_avx2;
    case Processor::any:
      break;
  }
#endif
  return block_kernels_float_default;
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

const WinogradKernels& winograd_kernels() {
#if defined(__x86_64__)
  switch (processor()) {
    case Processor::avx512bf16:
    case Processor::avx512:
      return winograd_avx512;
    case Processor::avx2:
      return winograd_avx2;
    case Processor::any:
      break;
  }
#endif
  return winograd_default;
}

}  // namespace fastres
