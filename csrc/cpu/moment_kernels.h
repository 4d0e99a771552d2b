// What follows from moments and weights alone, compiled once per instruction set.
//
// Rows lie `ld` values apart in fp32, with zeros behind their last value up to whole tiles; vectors
// beside them are padded alike.
#pragma once

#include "block_kernels.h"

namespace fastres {

// x C of some rows x, of which only what a kernel computes from it is kept.
struct MomentPanel {
  const float* x;
  int64_t ld, rows, columns;
  const float* packed;  // [columns / 32][columns][32]: C, or its upper triangle (see `forms`)
};

template <typename T>
struct MomentKernels {
  // `rows` dense rows in fp32, and one row in T.
  void (*widen)(const T* from, int64_t rows, int64_t columns, float* to, int64_t ld);
  void (*narrow)(const float* from, int64_t columns, T* to);
  // x . y
  float (*dot)(const float* x, const float* y, int64_t columns);
  // to = a * x, a * x + b * y, to + a * x
  void (*scaled)(float a, const float* x, int64_t columns, float* to);
  void (*combined)(float a, const float* x, float b, const float* y, int64_t columns, float* to);
  void (*add_scaled)(float a, const float* x, int64_t columns, float* to);
  // x C x of every row for a symmetric C: `packed` holds twice what is above its diagonal, what is
  // on it, and zeros below it. `scratch` holds 32 values for each row.
  void (*forms)(const MomentPanel& panel, float* scratch, float* to);
  // to = base + a[row] * (x C) + b[row] * y, dense rows.
  void (*products)(const MomentPanel& panel, const float* base, const float* a, const float* b,
                   const float* y, float* to);
};

extern const MomentKernels<float> moment_kernels_float_default, moment_kernels_float_avx2,
    moment_kernels_float_avx512;
extern const MomentKernels<bf16> moment_kernels_bf16_default, moment_kernels_bf16_avx2,
    moment_kernels_bf16_avx512;

// The best of these for the processor at hand.
template <typename T>
const MomentKernels<T>& moment_kernels();

}  // namespace fastres
