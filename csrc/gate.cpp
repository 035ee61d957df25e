// The loops of gate.h. One pass over x and out; a closed head's x is not read, nor an open one's fill.
//
// Products and sums are rounded one by one here, as PyTorch does it, so that both give the same bits: a fused
// multiply-add would not.

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
// Nor do copies of short rows become calls of memcpy.
#pragma GCC optimize("fp-contract=off", "no-tree-loop-distribute-patterns")
#endif

#include "gate.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>

#include "machines.h"

namespace symground {
namespace {

using torch::stable::Tensor;

struct Bfloat {
  uint16_t bits;
};

// With torch's conversions by integers, which become vector instructions where the compiler's own for _Float16 do not.
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

// To the nearest, ties to even; NaN stays NaN.
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

// Tokens [begin, end) of all (example, token, mask), the masks innermost: what is read of x for the first of them is in
// the cache for the others. The rows' loops stand in here, not in a function of theirs: rows are short.
template <class T>
INLINE void gate_tokens(const Gate<T>& g, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t m = i % g.M, t = i / g.M % g.T_, b = i / g.M / g.T_;
    const T* x = g.x + b * g.x_at.b + t * g.x_at.t;
    const T* fill = g.fill ? g.fill + m * g.fill_at.m + b * g.fill_at.b + t * g.fill_at.t : nullptr;
    const Wide<T>* gate = g.gate + m * g.gate_at.m + b * g.gate_at.b;
    T* out = g.out + ((m * g.B + b) * g.T_ + t) * g.H * g.D;
    for (int64_t h = 0; h < g.H; ++h) {
      gate_row(x + h * g.x_at.h, fill ? fill + h * g.fill_at.h : nullptr, g.fill_at.d == 0, out + h * g.D, g.D,
               gate[h * g.gate_at.h]);
    }
  }
}

#define FOR_DTYPE(T) \
  EACH_MACHINE void gate_each(const Gate<T>& g, int64_t begin, int64_t end) { gate_tokens(g, begin, end); }
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
        0, g.B * g.T_ * g.M, grain, [&](int64_t begin, int64_t end) { gate_each(g, begin, end); });
  });
  return numbers;
}

}  // namespace symground
