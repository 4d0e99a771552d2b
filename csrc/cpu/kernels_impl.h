// The loops themselves. Included by kernels_*.cpp after the instruction set has been chosen;
// includes nothing, so that no shared inline function is compiled for the wrong processor.

namespace fastres {
namespace {

inline float load(const float* p, int64_t i) { return p[i]; }
inline float load(const bf16* p, int64_t i) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(p[i].bits) << 16);
}

inline void store(float* p, int64_t i, float v) { p[i] = v; }
inline void store(bf16* p, int64_t i, float v) {  // round to nearest even, NaN stays NaN
  const uint32_t u = __builtin_bit_cast(uint32_t, v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p[i].bits = static_cast<uint16_t>(v != v ? (u >> 16) | 0x40u : rounded);
}

// Asks for what lies a little ahead of p[i ... i + lanes): a core reading one or two streams waits
// for memory otherwise. Reaching past the end is harmless.
template <typename T>
inline void prefetch(const T* p, int64_t i, int64_t lanes) {
  constexpr int64_t kAhead = 2048;
  const char* const from = reinterpret_cast<const char*>(p + i) + kAhead;
  const int64_t bytes = lanes * static_cast<int64_t>(sizeof(T));
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b);
}

// fn(first element of a period, number of lanes) over a run of n elements.
template <typename F>
inline void each_period(int64_t n, int64_t period, F fn) {
  int64_t i = 0;
  for (; i + period <= n; i += period) fn(i, period);
  if (i < n) fn(i, n - i);
}

template <typename T>
void statistics(const T* __restrict y, int64_t n, int64_t period, float* __restrict pivot,
                float* __restrict sum, float* __restrict squares) {
  const int64_t first = n < period ? n : period;
  for (int64_t l = 0; l < first; ++l) {
    pivot[l] = load(y, l);
    sum[l] = 0.0f;
    squares[l] = 0.0f;
  }
  each_period(n, period, [&](int64_t i, int64_t lanes) {
    prefetch(y, i, lanes);
    for (int64_t l = 0; l < lanes; ++l) {
      const float d = load(y, i + l) - pivot[l];
      sum[l] += d;
      squares[l] += d * d;
    }
  });
}

template <typename T, Shortcut KIND, bool RELU>
void apply_run(const T* __restrict y, T* __restrict out, int64_t n, int64_t period,
               const float* __restrict mean, const float* __restrict scale,
               const float* __restrict bias, const T* __restrict shortcut,
               const float* __restrict s_mean, const float* __restrict s_scale,
               const float* __restrict s_bias) {
  each_period(n, period, [&](int64_t i, int64_t lanes) {
    prefetch(y, i, lanes);
    if constexpr (KIND != Shortcut::none) prefetch(shortcut, i, lanes);
    for (int64_t l = 0; l < lanes; ++l) {
      float v = (load(y, i + l) - mean[l]) * scale[l] + bias[l];
      if constexpr (KIND == Shortcut::identity) v += load(shortcut, i + l);
      if constexpr (KIND == Shortcut::bn) {
        v += (load(shortcut, i + l) - s_mean[l]) * s_scale[l] + s_bias[l];
      }
      if constexpr (RELU) v = v <= 0.0f ? 0.0f : v;
      store(out, i + l, v);
    }
  });
}

template <typename T, Shortcut KIND>
void apply_kind(const T* y, T* out, int64_t n, int64_t period, BranchVectors b, const T* shortcut,
                BranchVectors s, bool relu) {
  (relu ? &apply_run<T, KIND, true> : &apply_run<T, KIND, false>)(
      y, out, n, period, b.mean, b.scale, b.bias, shortcut, s.mean, s.scale, s.bias);
}

template <typename T>
void apply(const T* y, T* out, int64_t n, int64_t period, BranchVectors branch, const T* shortcut,
           BranchVectors s_branch, Shortcut kind, bool relu) {
  switch (kind) {
    case Shortcut::none:
      return apply_kind<T, Shortcut::none>(y, out, n, period, branch, shortcut, s_branch, relu);
    case Shortcut::identity:
      return apply_kind<T, Shortcut::identity>(y, out, n, period, branch, shortcut, s_branch,
                                               relu);
    case Shortcut::bn:
      return apply_kind<T, Shortcut::bn>(y, out, n, period, branch, shortcut, s_branch, relu);
  }
}

// How the ReLU's mask is known: there is no ReLU, from the stored output, or from y again.
enum class Mask { all, out, again };

template <typename T, Mask MASK>
inline float masked(const T* dout, const T* out, int64_t i, float d, float scale, float bias) {
  const float g = load(dout, i);
  if constexpr (MASK == Mask::out) return load(out, i) <= 0.0f ? 0.0f : g;
  if constexpr (MASK == Mask::again) return d * scale + bias <= 0.0f ? 0.0f : g;
  return g;
}

template <typename T, Mask MASK, bool SECOND>
void reduce_run(const T* __restrict dout, const T* __restrict out, const T* __restrict y,
                const T* __restrict s_y, int64_t n, int64_t period, const float* __restrict mean,
                const float* __restrict scale, const float* __restrict bias,
                const float* __restrict s_mean, float* __restrict sum_g, float* __restrict sum_gd,
                float* __restrict sum_gd_s) {
  for (int64_t l = 0; l < period; ++l) {
    sum_g[l] = 0.0f;
    sum_gd[l] = 0.0f;
    if constexpr (SECOND) sum_gd_s[l] = 0.0f;
  }
  each_period(n, period, [&](int64_t i, int64_t lanes) {
    prefetch(y, i, lanes);
    prefetch(dout, i, lanes);
    if constexpr (MASK == Mask::out) prefetch(out, i, lanes);
    if constexpr (SECOND) prefetch(s_y, i, lanes);
    for (int64_t l = 0; l < lanes; ++l) {
      const float d = load(y, i + l) - mean[l];
      const float g = masked<T, MASK>(dout, out, i + l, d, scale[l], bias[l]);
      sum_g[l] += g;
      sum_gd[l] += g * d;
      if constexpr (SECOND) sum_gd_s[l] += g * (load(s_y, i + l) - s_mean[l]);
    }
  });
}

template <typename T, Mask MASK>
void reduce_mask(const T* dout, const T* out, const T* y, const T* s_y, int64_t n, int64_t period,
                 BranchVectors b, const float* s_mean, float* sum_g, float* sum_gd,
                 float* sum_gd_s) {
  (s_y != nullptr ? &reduce_run<T, MASK, true> : &reduce_run<T, MASK, false>)(
      dout, out, y, s_y, n, period, b.mean, b.scale, b.bias, s_mean, sum_g, sum_gd, sum_gd_s);
}

template <typename T>
void reduce(const T* dout, const T* out, const T* y, const T* s_y, int64_t n, int64_t period,
            BranchVectors branch, const float* s_mean, bool relu, float* sum_g, float* sum_gd,
            float* sum_gd_s) {
  const auto run = !relu            ? &reduce_mask<T, Mask::all>
                   : out != nullptr ? &reduce_mask<T, Mask::out>
                                    : &reduce_mask<T, Mask::again>;
  run(dout, out, y, s_y, n, period, branch, s_mean, sum_g, sum_gd, sum_gd_s);
}

template <typename T, Mask MASK, bool FROZEN>
void main_gradient(const T* __restrict dout, const T* __restrict out, const T* __restrict y,
                   int64_t n, int64_t period, const float* __restrict mean,
                   const float* __restrict scale, const float* __restrict bias,
                   const float* __restrict a, const float* __restrict b,
                   const float* __restrict c, T* __restrict dy, T* __restrict g_out) {
  each_period(n, period, [&](int64_t i, int64_t lanes) {
    prefetch(y, i, lanes);
    prefetch(dout, i, lanes);
    if constexpr (MASK == Mask::out) prefetch(out, i, lanes);
    if (g_out == nullptr) {
      for (int64_t l = 0; l < lanes; ++l) {
        const float d = load(y, i + l) - mean[l];
        const float g = masked<T, MASK>(dout, out, i + l, d, scale[l], bias[l]);
        store(dy, i + l, FROZEN ? a[l] * g : a[l] * g + (b[l] * d + c[l]));
      }
    } else {
      for (int64_t l = 0; l < lanes; ++l) {
        const float d = load(y, i + l) - mean[l];
        const float g = masked<T, MASK>(dout, out, i + l, d, scale[l], bias[l]);
        store(dy, i + l, FROZEN ? a[l] * g : a[l] * g + (b[l] * d + c[l]));
        store(g_out, i + l, g);
      }
    }
  });
}

// The second branch's gradient; its mask is always known from the stored output.
template <typename T, Mask MASK, bool FROZEN>
void second_gradient(const T* __restrict dout, const T* __restrict out, const T* __restrict s_y,
                     int64_t n, int64_t period, const float* __restrict s_mean,
                     const float* __restrict a, const float* __restrict b,
                     const float* __restrict c, T* __restrict ds) {
  each_period(n, period, [&](int64_t i, int64_t lanes) {
    for (int64_t l = 0; l < lanes; ++l) {
      const float d = load(s_y, i + l) - s_mean[l];
      const float g = masked<T, MASK>(dout, out, i + l, 0.0f, 0.0f, 0.0f);
      store(ds, i + l, FROZEN ? a[l] * g : a[l] * g + (b[l] * d + c[l]));
    }
  });
}

template <typename T, Mask MASK>
void backward_mask(const T* dout, const T* out, const T* y, const T* s_y, int64_t n,
                   int64_t period, BranchVectors br, GradientVectors gr, const float* s_mean,
                   GradientVectors s_gr, T* dy, T* ds) {
  const bool second = s_y != nullptr;
  // Branch by branch within a stretch that stays in the first-level cache.
  constexpr int64_t kStretch = 2048;
  const int64_t step = period * (kStretch / period < 1 ? 1 : kStretch / period);
  for (int64_t i = 0; i < n; i += step) {
    const int64_t m = n - i < step ? n - i : step;
    const T* o = out == nullptr ? nullptr : out + i;
    T* g_out = ds == nullptr || second ? nullptr : ds + i;
    (gr.b == nullptr ? &main_gradient<T, MASK, true> : &main_gradient<T, MASK, false>)(
        dout + i, o, y + i, m, period, br.mean, br.scale, br.bias, gr.a, gr.b, gr.c, dy + i, g_out);
    if (second && ds != nullptr) {
      (s_gr.b == nullptr ? &second_gradient<T, MASK, true> : &second_gradient<T, MASK, false>)(
          dout + i, o, s_y + i, m, period, s_mean, s_gr.a, s_gr.b, s_gr.c, ds + i);
    }
  }
}

template <typename T>
void backward(const T* dout, const T* out, const T* y, const T* s_y, int64_t n, int64_t period,
              BranchVectors branch, GradientVectors gradient, const float* s_mean,
              GradientVectors s_gradient, bool relu, T* dy, T* ds) {
  const auto run = !relu            ? &backward_mask<T, Mask::all>
                   : out != nullptr ? &backward_mask<T, Mask::out>
                                    : &backward_mask<T, Mask::again>;
  run(dout, out, y, s_y, n, period, branch, gradient, s_mean, s_gradient, dy, ds);
}

template <typename T>
void apply_pad_row(const T* __restrict y, T* __restrict out, int64_t channels, BranchVectors b,
                   const T* __restrict shortcut, int64_t s_channels, bool relu) {
  const float* __restrict mean = b.mean;
  const float* __restrict scale = b.scale;
  const float* __restrict bias = b.bias;
  const float floor = relu ? 0.0f : -__builtin_inff();
  for (int64_t c = 0; c < s_channels; ++c) {
    const float v = (load(y, c) - mean[c]) * scale[c] + bias[c] + load(shortcut, c);
    store(out, c, v <= floor ? floor : v);
  }
  for (int64_t c = s_channels; c < channels; ++c) {
    const float v = (load(y, c) - mean[c]) * scale[c] + bias[c];
    store(out, c, v <= floor ? floor : v);
  }
}

template <typename T>
void mask_row(const T* __restrict dout, const T* __restrict out, int64_t channels,
              T* __restrict g) {
  for (int64_t c = 0; c < channels; ++c) {
    const float gradient = load(dout, c);
    store(g, c, out != nullptr && load(out, c) <= 0.0f ? 0.0f : gradient);
  }
}

// The next maximum goes to another buffer than the last one came from: in one buffer compilers
// store under a mask, and the load that follows has to wait for memory.
template <typename T>
void max_window(const T* const* pixels, const uint8_t* which, int64_t count, int64_t channels,
                T* __restrict out, uint8_t* __restrict index, float* scratch) {
  float* best = scratch;
  float* place = best + channels;
  float* next_best = place + channels;
  float* next_place = next_best + channels;
  for (int64_t c = 0; c < channels; ++c) {
    best[c] = -__builtin_inff();
    place[c] = which[0];
  }
  for (int64_t p = 0; p < count; ++p) {
    const T* __restrict x = pixels[p];
    const float here = which[p];
    const float* __restrict from_best = best;
    const float* __restrict from_place = place;
    float* __restrict to_best = next_best;
    float* __restrict to_place = next_place;
    for (int64_t c = 0; c < channels; ++c) {
      const float v = load(x, c), b = from_best[c], at = from_place[c];
      const bool stays = v <= b || (b != b && v == v);
      to_best[c] = stays ? b : v;
      to_place[c] = stays ? at : here;
    }
    best = to_best;
    place = to_place;
    next_best = const_cast<float*>(from_best);
    next_place = const_cast<float*>(from_place);
  }
  for (int64_t c = 0; c < channels; ++c) {
    store(out, c, best[c]);
    index[c] = static_cast<uint8_t>(static_cast<int32_t>(place[c]));
  }
}

// The same for a number of gradients known beforehand, whose sum then needs no memory.
template <int COUNT, typename T>
void max_gradient_of(const T* const* gradients, const uint8_t* const* indices,
                     const uint8_t* which, int64_t channels, T* __restrict dx) {
  const T* g[COUNT];
  const uint8_t* index[COUNT];
  int32_t here[COUNT];
  for (int p = 0; p < COUNT; ++p) {
    g[p] = gradients[p];
    index[p] = indices[p];
    here[p] = which[p];
  }
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c) {
    float sum = 0.0f;
#pragma GCC unroll 4
    for (int p = 0; p < COUNT; ++p) {
      const float v = load(g[p], c);
      sum += static_cast<int32_t>(index[p][c]) == here[p] ? v : 0.0f;
    }
    store(dx, c, sum);
  }
}

template <typename T>
void max_gradient(const T* const* gradients, const uint8_t* const* indices, const uint8_t* which,
                  int64_t count, int64_t channels, T* __restrict dx, float* __restrict sum) {
  // windows of 3 x 3 at a stride of 2
  if (count == 1) return max_gradient_of<1>(gradients, indices, which, channels, dx);
  if (count == 2) return max_gradient_of<2>(gradients, indices, which, channels, dx);
  if (count == 4) return max_gradient_of<4>(gradients, indices, which, channels, dx);
  for (int64_t c = 0; c < channels; ++c) sum[c] = 0.0f;
  for (int64_t p = 0; p < count; ++p) {
    const T* __restrict g = gradients[p];
    const uint8_t* __restrict index = indices[p];
    const int32_t here = which[p];
    for (int64_t c = 0; c < channels; ++c) {
      const float v = load(g, c);
      sum[c] += static_cast<int32_t>(index[c]) == here ? v : 0.0f;
    }
  }
  for (int64_t c = 0; c < channels; ++c) store(dx, c, sum[c]);
}

template <typename T>
constexpr Kernels<T> table() {
  return {&statistics<T>,    &apply<T>,    &reduce<T>,     &backward<T>,
          &apply_pad_row<T>, &mask_row<T>, &max_window<T>, &max_gradient<T>};
}

}  // namespace
}  // namespace fastres
