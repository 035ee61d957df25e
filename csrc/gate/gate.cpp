// The loops of gate.h, in one pass over x and out. x is not read where the gate is 0, nor fill where it is 1. An output
// too large for the caches is written past them.
//
// Each product and sum is rounded separately, as in PyTorch, so that both give the same bits; a fused multiply-add
// would give others.

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
// The other option keeps copies of short rows from becoming calls of memcpy.
#pragma GCC optimize("fp-contract=off", "no-tree-loop-distribute-patterns")
#endif

#include "gate.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "../common/machines.h"

namespace symground {
namespace {

using torch::stable::Tensor;

struct Bfloat {
  uint16_t bits;
};

// Uses torch's conversions by integers, because compilers vectorise these but not their own conversions of _Float16.
struct Half {
  uint16_t bits;
};

template <class T>
INLINE Wide<T> widened(T x) {
  if constexpr (std::is_same_v<T, Bfloat>) {
    return std::bit_cast<float>(uint32_t(x.bits) << 16);
  } else if constexpr (std::is_same_v<T, Half>) {
    return torch::headeronly::detail::fp16_ieee_to_fp32_value(x.bits);
  } else {
    return Wide<T>(x);
  }
}

// Rounds to nearest, ties to even; NaN stays NaN.
template <class T>
INLINE T narrowed(Wide<T> x) {
  if constexpr (std::is_same_v<T, Bfloat>) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
  } else if constexpr (std::is_same_v<T, Half>) {
    return {torch::headeronly::detail::fp16_ieee_from_fp32_value(x)};
  } else {
    return T(x);
  }
}

template <class T>
INLINE void gate_row(
    const T* __restrict x, const T* __restrict fill, bool one_fill, T* __restrict out, int64_t n, Wide<T> gate) {
  const Wide<T> rest = Wide<T>(1) - gate;
  if (gate == Wide<T>(1)) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] = x[j];
  } else if (gate == Wide<T>(0)) {
    if (!fill || one_fill) {
      const T value = fill ? *fill : T{};
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) out[j] = value;
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) out[j] = fill[j];
    }
  } else if (!fill) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] = narrowed<T>(gate * widened(x[j]));
  } else if (one_fill) {
    const Wide<T> filled = rest * widened(*fill);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const Wide<T> kept = gate * widened(x[j]);
      out[j] = narrowed<T>(kept + filled);
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const Wide<T> kept = gate * widened(x[j]), filled = rest * widened(fill[j]);
      out[j] = narrowed<T>(kept + filled);
    }
  }
}

// Writes past the caches: a line that is written whole need not be read first, and evicts nothing else.
INLINE void stream(const void* from, void* to, int64_t bytes) {
#if defined(__SSE2__)
  for (int64_t j = 0; j < bytes; j += 16) {
    const auto value = _mm_load_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(from) + j));
    _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(to) + j), value);
  }
#else
  std::memcpy(to, from, bytes);
#endif
}

// gate_row through a buffer in the first-level cache.
template <class T>
INLINE void gate_row_streamed(const T* x, const T* fill, bool one_fill, T* out, int64_t n, Wide<T> gate) {
  constexpr int64_t most = 1024;
  alignas(64) T buffer[most];
  for (int64_t j = 0; j < n; j += most) {
    const int64_t count = std::min(most, n - j);
    gate_row(x + j, fill && !one_fill ? fill + j : fill, one_fill, buffer, count, gate);
    stream(buffer, out + j, count * sizeof(T));
  }
}

// Prefetches a row before it is needed: where heads are skipped, processors do not predict which rows come next.
// Nothing beyond the end of x is read.
template <class T>
INLINE void prefetch(const T* x, int64_t n) {
  const char* from = reinterpret_cast<const char*>(x);
  for (int64_t j = 0; j < n * int64_t(sizeof(T)); j += 64) __builtin_prefetch(from + j);
}

// Whether the row of head h, or one next to it, is read; heads with gate `passed_over` are not. Fetching a gap of two
// rows costs less than skipping it, since memory then delivers one stream.
template <class T>
INLINE bool is_near(const Gate<T>& g, const Wide<T>* gate, int64_t h, Wide<T> passed_over) {
  for (int64_t i = std::max<int64_t>(0, h - 1); i < std::min(g.H, h + 2); ++i) {
    if (gate[i * g.gate_at.h] != passed_over) return true;
  }
  return false;
}

// Whether out is larger than what the caches keep of it until it is read, and its rows are whole vectors. Memory beyond
// what an allocator keeps (glibc: 32 MiB) comes in pages that the system has just zeroed, which are thus in the caches.
template <class T>
bool streams(const Gate<T>& g) {
  const int64_t mebibytes = g.M * g.B * g.T_ * g.H * g.D * int64_t(sizeof(T)) >> 20;
  const bool whole = g.D * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(g.out) % 16 == 0;
  return whole && mebibytes >= 16 && mebibytes < 32;
}

// Tokens [begin, end) of all (example, token, mask), with the masks innermost, so that x is in the cache for all masks
// after the first. The loops over rows are inlined by hand, because rows are short.
template <class T>
INLINE void gate_tokens(const Gate<T>& g, bool streamed, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t m = i % g.M, t = i / g.M % g.T_, b = i / g.M / g.T_;
    const T* x = g.x + b * g.x_at.b + t * g.x_at.t;
    const T* fill = g.fill ? g.fill + m * g.fill_at.m + b * g.fill_at.b + t * g.fill_at.t : nullptr;
    const Wide<T>* gate = g.gate + m * g.gate_at.m + b * g.gate_at.b;
    T* out = g.out + ((m * g.B + b) * g.T_ + t) * g.H * g.D;
    for (int64_t h = 0; h < g.H; ++h) {
      const T* filled = fill ? fill + h * g.fill_at.h : nullptr;
      const bool one_fill = g.fill_at.d == 0;
      if (streamed) {
        if (m == 0 && is_near(g, gate, h, Wide<T>(0))) prefetch(x + 2 * g.x_at.t + h * g.x_at.h, g.D);
        if (filled && g.fill_at.t != 0 && is_near(g, gate, h, Wide<T>(1))) prefetch(filled + 2 * g.fill_at.t, g.D);
        gate_row_streamed(x + h * g.x_at.h, filled, one_fill, out + h * g.D, g.D, gate[h * g.gate_at.h]);
      } else {
        gate_row(x + h * g.x_at.h, filled, one_fill, out + h * g.D, g.D, gate[h * g.gate_at.h]);
      }
    }
  }
#if defined(__SSE2__)
  if (streamed) _mm_sfence();
#endif
}

#define FOR_DTYPE(T) \
  EACH_MACHINE void gate_each(const Gate<T>& g, bool streamed, int64_t begin, int64_t end) { \
    gate_tokens(g, streamed, begin, end);                                                     \
  }
FOR_DTYPE(double)
FOR_DTYPE(float)
FOR_DTYPE(Half)
FOR_DTYPE(Bfloat)
#undef FOR_DTYPE

template <class T>
bool are_numbers(const Gate<T>& g) {
  bool numbers = true;
  for (int64_t m = 0; m < g.M; ++m) {
    for (int64_t b = 0; b < g.B; ++b) {
      for (int64_t h = 0; h < g.H; ++h) {
        const Wide<T> gate = g.gate[m * g.gate_at.m + b * g.gate_at.b + h * g.gate_at.h];
        numbers = numbers && gate == gate;
      }
    }
  }
  return numbers;
}

}  // namespace

bool run_gate(const Tensor& x, const Tensor& gate, const std::optional<Tensor>& fill, const Tensor& out) {
  bool numbers = false;
  with_gate<Half, Bfloat>(x, gate, fill, out, [&](const auto& g) {
    numbers = are_numbers(g);
    if (!numbers) return;
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, g.H * g.D));
    torch::stable::parallel_for(
        0, g.B * g.T_ * g.M, grain, [&](int64_t begin, int64_t end) { gate_each(g, streams(g), begin, end); });
  });
  return numbers;
}

}  // namespace symground
