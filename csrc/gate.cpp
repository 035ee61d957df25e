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

#include <torch/headeronly/util/Half.h>

#include <bit>

#include "machines.h"

namespace symground {
namespace {

struct Bfloat {
  uint16_t bits;
};

// With torch's conversions by integers, which become vector instructions where the compiler's own for _Float16 do not.
struct Half {
  uint16_t bits;
};

template <class T>
struct WideOf {
  using Type = float;
};
template <>
struct WideOf<double> {
  using Type = double;
};
template <class T>
using Wide = typename WideOf<T>::Type;

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

// What one call works on; D numbers in a row.
template <class T>
struct Gate {
  const T* x;
  const Wide<T>* gate;
  const T* fill;
  T* out;
  int64_t M, B, T_, H, D;
  int64_t x_b, x_t, x_h;       // strides
  int64_t f_m, f_b, f_t, f_h;
  bool one_fill;               // one number for a whole row
};

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
    const T* x = g.x + b * g.x_b + t * g.x_t;
    const T* fill = g.fill ? g.fill + m * g.f_m + b * g.f_b + t * g.f_t : nullptr;
    const Wide<T>* gate = g.gate + (m * g.B + b) * g.H;
    T* out = g.out + ((m * g.B + b) * g.T_ + t) * g.H * g.D;
    for (int64_t h = 0; h < g.H; ++h) {
      gate_row(x + h * g.x_h, fill ? fill + h * g.f_h : nullptr, g.one_fill, out + h * g.D, g.D, gate[h]);
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
void run(const Tensor& x, const Tensor& gate, const OptionalTensor& fill, const Tensor& out) {
  Gate<T> g{static_cast<const T*>(x.data_ptr()),
            static_cast<const Wide<T>*>(gate.data_ptr()),
            fill ? static_cast<const T*>(fill->data_ptr()) : nullptr,
            static_cast<T*>(out.data_ptr()),
            out.size(0), out.size(1), out.size(2), out.size(3), out.size(4),
            x.stride(0), x.stride(1), x.stride(2),
            0, 0, 0, 0,
            fill && (fill->stride(4) == 0 || out.size(4) == 1)};
  if (fill) g.f_m = fill->stride(0), g.f_b = fill->stride(1), g.f_t = fill->stride(2), g.f_h = fill->stride(3);
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, g.H * g.D));
  torch::stable::parallel_for(
      0, g.B * g.T_ * g.M, grain, [&](int64_t begin, int64_t end) { gate_each(g, begin, end); });
}

}  // namespace

void run_gate(const Tensor& x, const Tensor& gate, const OptionalTensor& fill, const Tensor& out) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Double: return run<double>(x, gate, fill, out);
    case ScalarType::Float: return run<float>(x, gate, fill, out);
    case ScalarType::Half: return run<Half>(x, gate, fill, out);
    case ScalarType::BFloat16: return run<Bfloat>(x, gate, fill, out);
    default: STD_TORCH_CHECK(false, "gate_heads: expected float64, float32, float16 or bfloat16");
  }
}

}  // namespace symground
