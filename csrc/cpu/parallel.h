// Work handed out among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastres {

// fn(i) for every i in [0, count), in parallel: each thread takes the next one as it is done with
// the last. Equal shares handed out beforehand end when the slowest thread does, which began later
// or shares its memory with others. What comes out must not depend on who computes what.
template <typename F>
void in_turns(int64_t count, F fn) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) fn(i);
  });
}

}  // namespace fastres
