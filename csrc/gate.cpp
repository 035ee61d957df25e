// The loops of gate.h. One pass over x and out; a closed head's x is not read, nor an open one's fill.
//
// Products and sums are rounded one by one here, as PyTorch does it, so that both give the same bits: a fused
// multiply-add would not.

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "gate.h"

#include <bit>
#include <cstring>

#include "machines.h"

namespace symground {
namespace {

struct Bfloat {
  uint16_t bits;
  using Wide = float;
};

#if defined(__FLT16_MANT_DIG__)
using Half = _Float16;
#else
using Half = c10::Half;
#endif

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
  } else {
    return T(x);
  }
}

template <class T>
INLINE void scaled(const T* __restrict x, T* __restrict out, int64_t n, Wide<T> gate) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = narrowed<T>(gate * widened(x[j]));
}

template <class T>
INLINE void blended(const T* __restrict x, const T* __restrict fill, T* __restrict out, int64_t n, Wide<T> gate) {
  const Wide<T> rest = Wide<T>(1) - gate;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const Wide<T> kept = gate * widened(x[j]), filled = rest * widened(fill[j]);
    out[j] = narrowed<T>(kept + filled);
  }
}

// A fill of one number for the whole row.
template <class T>
INLINE void shifted(const T* __restrict x, T* __restrict out, int64_t n, Wide<T> gate, Wide<T> filled) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const Wide<T> kept = gate * widened(x[j]);
    out[j] = narrowed<T>(kept + filled);
  }
}

#define FOR_DTYPE(T)                                                                                 \
  EACH_MACHINE void scaled_row(const T* x, T* out, int64_t n, Wide<T> gate) { scaled(x, out, n, gate); } \
  EACH_MACHINE void blended_row(const T* x, const T* fill, T* out, int64_t n, Wide<T> gate) {        \
    blended(x, fill, out, n, gate);                                                                  \
  }                                                                                                  \
  EACH_MACHINE void shifted_row(const T* x, T* out, int64_t n, Wide<T> gate, Wide<T> filled) {       \
    shifted(x, out, n, gate, filled);                                                                \
  }
FOR_DTYPE(double)
FOR_DTYPE(float)
FOR_DTYPE(Half)
FOR_DTYPE(Bfloat)
#undef FOR_DTYPE

template <class T>
void row(const T* x, const T* fill, bool one_fill, T* out, int64_t n, Wide<T> g) {
  if (g == Wide<T>(1)) {
    std::memcpy(out, x, n * sizeof(T));
  } else if (g == Wide<T>(0)) {
    if (fill && one_fill) {
      std::fill(out, out + n, *fill);
    } else {
      fill ? std::memcpy(out, fill, n * sizeof(T)) : std::memset(out, 0, n * sizeof(T));
    }
  } else if (fill && one_fill) {
    shifted_row(x, out, n, g, (Wide<T>(1) - g) * widened(*fill));
  } else if (fill) {
    blended_row(x, fill, out, n, g);
  } else {
    scaled_row(x, out, n, g);
  }
}

template <class T>
void run(const Tensor& x, const Tensor& gate, const OptionalTensor& fill, const Tensor& out) {
  const int64_t M = out.size(0), B = out.size(1), T_ = out.size(2), H = out.size(3), D = out.size(4);
  const T* x_data = static_cast<const T*>(x.data_ptr());
  const auto* gate_data = static_cast<const Wide<T>*>(gate.data_ptr());
  const T* fill_data = fill ? static_cast<const T*>(fill->data_ptr()) : nullptr;
  T* out_data = static_cast<T*>(out.data_ptr());
  const int64_t x_b = x.stride(0), x_t = x.stride(1), x_h = x.stride(2);
  const int64_t f_m = fill ? fill->stride(0) : 0, f_b = fill ? fill->stride(1) : 0, f_t = fill ? fill->stride(2) : 0,
                f_h = fill ? fill->stride(3) : 0;
  const bool one_fill = fill && (fill->stride(4) == 0 || D == 1);
  // The masks innermost: what is read of x for the first of them is in the cache for the others.
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, H * D));
  torch::stable::parallel_for(0, B * T_ * M, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = i % M, t = i / M % T_, b = i / M / T_;
      for (int64_t h = 0; h < H; ++h) {
        row<T>(x_data + b * x_b + t * x_t + h * x_h,
               fill_data ? fill_data + m * f_m + b * f_b + t * f_t + h * f_h : nullptr, one_fill,
               out_data + (((m * B + b) * T_ + t) * H + h) * D, D, gate_data[(m * B + b) * H + h]);
      }
    }
  });
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
