// Memory of the fused operators on a CPU: what is freed stays at hand for the next tensor.
//
// A fresh block above malloc's threshold costs a page fault per 4 KiB, which is more than most
// operators cost to compute. While a PoolScope lives on a thread, that thread's larger tensor
// allocations come from one arena of reserved addresses; all others are served as before. The
// arena takes the lowest place that fits and joins what is freed, so a training step finds the
// same places again; physical memory is used up to the highest place ever taken.
#pragma once

#include <cstdint>

namespace fastres {

class PoolScope {
 public:
  PoolScope();
  ~PoolScope();
  PoolScope(const PoolScope&) = delete;
  PoolScope& operator=(const PoolScope&) = delete;

 private:
  bool outer_;
};

struct PoolStatistics {
  int64_t used;  // bytes in live tensors
  int64_t held;  // bytes of the arena up to the highest place ever taken
  int64_t peak;  // the most ever used
};

PoolStatistics pool_statistics();

// Gives the pages of all free places back to the system.
void pool_release();

}  // namespace fastres
