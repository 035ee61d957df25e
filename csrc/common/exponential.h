// An exponential that compilers vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "machines.h"

namespace symground {

template <class T>
struct Format;

template <>
struct Format<float> {
  using Bits = int32_t;
  static constexpr int mantissa = 23, bias = 127, degree = 7;
  static constexpr float to_integer = 0x1.8p23f, lowest = -87.0f, highest = 89.0f;
  static constexpr float log2e = 0x1.715476p+0f, ln2_high = 0x1.62ep-1f, ln2_low = 0x1.0bfbe8p-15f;
};

template <>
struct Format<double> {
  using Bits = int64_t;
  static constexpr int mantissa = 52, bias = 1023, degree = 13;
  static constexpr double to_integer = 0x1.8p52, lowest = -708.0, highest = 710.0;
  static constexpr double log2e = 0x1.71547652b82fep+0, ln2_high = 0x1.62e42fefap-1, ln2_low = 0x1.cf79abc9e3b3ap-40;
};

constexpr double inverse_factorial(int k) { return k == 0 ? 1.0 : inverse_factorial(k - 1) / k; }

// Σ r^k / k! by Horner's rule from term K on. As |r| <= ln(2)/2, the rest is below half a unit in the last place.
template <class T, int K>
INLINE T series(T r) {
  if constexpr (K == Format<T>::degree) {
    return T(inverse_factorial(K));
  } else {
    return T(inverse_factorial(K)) + r * series<T, K + 1>(r);
  }
}

// exp(x) within 2 units in the last place; 0 instead of (almost) subnormal results, inf above the range, NaN for NaN.
template <class T>
INLINE T exponential(T x) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  T y = x < F::lowest ? F::lowest : x;
  y = y > F::highest ? F::highest : y;
  // Adding 1.5 · 2^mantissa leaves the nearest integer in the low bits, without a rounding instruction.
  const T shifted = y * F::log2e + F::to_integer;
  const T n = shifted - F::to_integer;
  const T r = (y - n * F::ln2_high) - n * F::ln2_low;
  // 2^n is computed as 2 · 2^(n−1), because n itself may exceed the largest exponent.
  const Bits exponent = std::bit_cast<Bits>(shifted) - std::bit_cast<Bits>(F::to_integer);
  const T power = std::bit_cast<T>(Bits((exponent + (F::bias - 1)) << F::mantissa));
  const T result = (series<T, 0>(r) * power) * T(2);
  return x < F::lowest ? T(0) : result;
}

// tanh(x) within 4 units in the last place, also near 0; NaN for NaN. From exp(2x) − 1, so that nothing cancels.
template <class T>
INLINE T hyperbolic_tangent(T x) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  T y = x < T(-20) ? T(-20) : x;  // tanh is ±1 beyond
  y = (y > T(20) ? T(20) : y) * 2;
  const T shifted = y * F::log2e + F::to_integer;
  const T n = shifted - F::to_integer;
  const T r = (y - n * F::ln2_high) - n * F::ln2_low;
  const Bits exponent = std::bit_cast<Bits>(shifted) - std::bit_cast<Bits>(F::to_integer);
  const T power = std::bit_cast<T>(Bits((exponent + F::bias) << F::mantissa));
  const T less_one = r * series<T, 1>(r) * power + (power - T(1));  // 2^n (e^r − 1) + 2^n − 1
  return less_one / (less_one + T(2));
}

}  // namespace symground
