#include "kernels.h"
#include "kernels_impl.h"

namespace fastres {

const Kernels<float> kernels_float_default = table<float>();
const Kernels<bf16> kernels_bf16_default = table<bf16>();

template <>
const Kernels<float>& kernels<float>() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return kernels_float_avx512;
  }
  if (__builtin_cpu_supports("avx2")) {
    return kernels_float_avx2;
  }
#endif
  return kernels_float_default;
}

template <>
const Kernels<bf16>& kernels<bf16>() {
#if defined(__x86_64__)
  const Kernels<float>* chosen = &kernels<float>();
  if (chosen == &kernels_float_avx512) {
    return __builtin_cpu_supports("avx512bf16") ? kernels_bf16_avx512bf16 : kernels_bf16_avx512;
  }
  if (chosen == &kernels_float_avx2) {
    return kernels_bf16_avx2;
  }
#endif
  return kernels_bf16_default;
}

}  // namespace fastres
