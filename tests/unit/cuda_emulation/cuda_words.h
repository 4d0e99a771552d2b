// Enough of CUDA's words for g++ to compile kernels that use neither shared memory nor
// synchronisation. A launch is four loops.
#pragma once

#include <algorithm>
#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Dim3 {
  unsigned x, y, z;
};

inline Dim3 gridDim, blockDim, blockIdx, threadIdx;
using std::min;

template <typename Body>
void emulate(Dim3 grid, Dim3 block, Body body) {
  gridDim = grid;
  blockDim = block;
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
      for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) body();
}
