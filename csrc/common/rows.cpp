// Loops that compilers vectorise.

#include "rows.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "exponential.h"

namespace symground {
namespace {

template <bool kBend, class T>
INLINE void capped(T* __restrict s, T* __restrict bend, int64_t n, T scale, T softcap, T slope, T distance) {
  // T(int32_t(j)): AVX2 converts no 64-bit integers, and without it compilers vectorise no part of the loop.
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T t = hyperbolic_tangent(s[j] * scale / softcap);
    if constexpr (kBend) bend[j] = T(1) - t * t;
    s[j] = softcap * t + slope * (distance + T(int32_t(j)));
  }
}

template <class T>
INLINE void logits(T* __restrict s, T* __restrict bend, int64_t n, T scale, T softcap, T slope, int64_t distance) {
  if (softcap == T(0)) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) s[j] = s[j] * scale + slope * (T(distance) + T(int32_t(j)));
  } else if (bend) {
    capped<true>(s, bend, n, scale, softcap, slope, T(distance));
  } else {
    capped<false>(s, bend, n, scale, softcap, slope, T(distance));
  }
}

template <class T>
INLINE T softmax(T* __restrict s, int64_t n, T scale, T sink, T gate) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  T largest = sink;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < n; ++j) {
    const T x = s[j] * scale;
    largest = x > largest ? x : largest;
  }
  if (largest == -infinity) largest = 0;
  T sum = std::exp(sink - largest);
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const T x = exponential(s[j] * scale - largest);
    s[j] = x;
    sum += x;
  }
  if (gate != T(0)) {
    const T factor = gate / sum;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      s[j] *= factor;
    }
  }
  return std::log(sum) + largest;
}

template <class T>
INLINE void add_exponentials(const T* __restrict s, int64_t n, T& top, T& total) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  T largest = top;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < n; ++j) largest = s[j] > largest ? s[j] : largest;
  const T level = largest == -infinity ? T(0) : largest;  // -inf - (-inf) would be NaN
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += exponential(s[j] - level);
  total = total * std::exp(top - level) + sum;
  top = largest;
}

template <class T>
INLINE void scaled_exponentials(T* __restrict s, int64_t n, T level, T factor) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) s[j] = factor * exponential(s[j] - level);
}

// s becomes p = exp(s · scale − lse); returns Σ p.
template <class T>
INLINE T attend(T* __restrict s, int64_t n, T scale, T lse) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const T p = exponential(s[j] * scale - lse);
    s[j] = p;
    sum += p;
  }
  return sum;
}

// The factor that normalises p, given its sum; 1 if lse is not the log-sum-exp of these keys.
template <class T>
INLINE T correction(T sum, T lse) {
  const T rounding = std::min(T(0.5), 32 * std::numeric_limits<T>::epsilon() * (1 + std::abs(lse)));
  return std::abs(sum - 1) <= rounding ? 1 / sum : T(1);
}

template <class T>
INLINE void saliency(
    T* __restrict s, const T* __restrict dp, T* __restrict total, int64_t n, T scale, T lse, T beside, T gate) {
  const T factor = gate * correction(attend(s, n, scale, lse) + beside, lse);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) total[j] += factor * (s[j] * dp[j]);
}

template <class T>
INLINE void magnitude(
    T* __restrict s, const T* __restrict dp, T* __restrict column, int64_t n, T scale, T lse, T beside, T gate) {
  const T factor = std::abs(gate * correction(attend(s, n, scale, lse) + beside, lse));
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) column[j] += factor * std::abs(s[j] * dp[j]);
}

// p becomes factor · p, and dp becomes dS, given Σ p ∘ dp. kTotal and kColumn say which of total and column is given.
template <bool kTotal, bool kColumn, class T>
INLINE void settle(
    T* __restrict s, T* __restrict dp, T* __restrict total, T* __restrict column, int64_t n, T factor, T sum, T gate) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T d = dp[j], p = factor * s[j], saliency = gate * (p * d);
    s[j] = p;
    if constexpr (kTotal) total[j] += saliency;
    if constexpr (kColumn) column[j] += std::abs(saliency);
    dp[j] = gate * (p * (d - sum));
  }
}

template <class T>
INLINE void gradient(
    T* __restrict s, T* __restrict dp, T* __restrict total, T* __restrict column, int64_t n, T scale, T lse, T beside,
    T gate) {
  T mass = 0, sum = 0;
#pragma omp simd reduction(+ : mass, sum)
  for (int64_t j = 0; j < n; ++j) {
    const T p = exponential(s[j] * scale - lse);
    s[j] = p;
    mass += p;
    sum += p * dp[j];
  }
  // If one key has all the weight, d − sum must be 0, but the rounding of lse in p would leave a remainder.
  mass += beside;
  const T factor = mass > 0 ? 1 / mass : T(1);
  sum *= factor;
  if (total && column) {
    settle<true, true>(s, dp, total, column, n, factor, sum, gate);
  } else if (total) {
    settle<true, false>(s, dp, total, column, n, factor, sum, gate);
  } else if (column) {
    settle<false, true>(s, dp, total, column, n, factor, sum, gate);
  } else {
    settle<false, false>(s, dp, total, column, n, factor, sum, gate);
  }
}

template <class T>
INLINE T weights(
    const T* __restrict s, T* __restrict p, int64_t n, T scale, T lse, T beside, T away, RowSummary<T>* found) {
  T sum = 0;
  if (!found) {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) {
      const T x = exponential(s[j] * scale - lse);
      p[j] = x;
      sum += x;
    }
    return correction(sum + beside, lse);
  }
  constexpr T infinity = std::numeric_limits<T>::infinity();
  T entropy = 0, distance = 0, score = -infinity;
#pragma omp simd reduction(+ : sum, entropy, distance) reduction(max : score)
  for (int64_t j = 0; j < n; ++j) {
    const T x = s[j] * scale, log = x - lse, here = exponential(log);
    p[j] = here;
    sum += here;
    entropy -= here * (log < Format<T>::lowest ? T(0) : log);  // 0 · −inf would be NaN
    distance += here * (away - T(int32_t(j)));
    score = x > score ? x : score;
  }
  const T factor = correction(sum + beside, lse);
  *found = {factor * (entropy - std::log(factor) * sum), factor * distance, score};
  return factor;
}

template <class T>
INLINE int64_t find(const T* __restrict s, int64_t n, T scale, T score) {
  if (score == -std::numeric_limits<T>::infinity()) return n;
  constexpr int64_t block = 64;  // a loop with an exit is not vectorised
  for (int64_t first = 0; first < n; first += block) {
    const int64_t stop = std::min(first + block, n);
    int32_t found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t j = first; j < stop; ++j) found |= int32_t(s[j] * scale == score);
    if (!found) continue;
    for (int64_t j = first; j < stop; ++j) {
      if (s[j] * scale == score) return j;
    }
  }
  return n;
}

template <class T>
INLINE void add(const T* __restrict p, T* __restrict total, int64_t n, T factor) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) total[j] += factor * p[j];
}

template <bool kKeys, class T>
INLINE T weights_gradient(
    T* __restrict s, const T* __restrict of_key, T* __restrict dp, int64_t n, T scale, T lse, T beside, T entropy) {
  T mass = 0, sum = 0;
#pragma omp simd reduction(+ : mass, sum)
  for (int64_t j = 0; j < n; ++j) {
    const T log = s[j] * scale - lse, p = exponential(log);
    T d = -entropy * ((log < Format<T>::lowest ? Format<T>::lowest : log) + 1);
    if constexpr (kKeys) d += of_key[j];
    s[j] = p;
    dp[j] = d;
    mass += p;
    sum += p * d;
  }
  const T factor = correction(mass + beside, lse);
  sum *= factor;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) dp[j] = factor * s[j] * (dp[j] - sum);
  return sum;
}

}  // namespace

EACH_MACHINE void logits_row(
    float* s, float* bend, int64_t n, float scale, float softcap, float slope, int64_t distance) {
  logits(s, bend, n, scale, softcap, slope, distance);
}

EACH_MACHINE void logits_row(
    double* s, double* bend, int64_t n, double scale, double softcap, double slope, int64_t distance) {
  logits(s, bend, n, scale, softcap, slope, distance);
}

EACH_MACHINE float softmax_row(float* s, int64_t n, float scale, float sink, float gate) {
  return softmax(s, n, scale, sink, gate);
}

EACH_MACHINE double softmax_row(double* s, int64_t n, double scale, double sink, double gate) {
  return softmax(s, n, scale, sink, gate);
}

EACH_MACHINE void add_exponentials_row(const float* s, int64_t n, float& top, float& total) {
  add_exponentials(s, n, top, total);
}

EACH_MACHINE void add_exponentials_row(const double* s, int64_t n, double& top, double& total) {
  add_exponentials(s, n, top, total);
}

EACH_MACHINE void scaled_exponentials_row(float* s, int64_t n, float level, float factor) {
  scaled_exponentials(s, n, level, factor);
}

EACH_MACHINE void scaled_exponentials_row(double* s, int64_t n, double level, double factor) {
  scaled_exponentials(s, n, level, factor);
}

EACH_MACHINE void saliency_row(
    float* s, const float* dp, float* total, int64_t n, float scale, float lse, float beside, float gate) {
  saliency(s, dp, total, n, scale, lse, beside, gate);
}

EACH_MACHINE void saliency_row(
    double* s, const double* dp, double* total, int64_t n, double scale, double lse, double beside, double gate) {
  saliency(s, dp, total, n, scale, lse, beside, gate);
}

EACH_MACHINE void magnitude_row(
    float* s, const float* dp, float* column, int64_t n, float scale, float lse, float beside, float gate) {
  magnitude(s, dp, column, n, scale, lse, beside, gate);
}

EACH_MACHINE void magnitude_row(
    double* s, const double* dp, double* column, int64_t n, double scale, double lse, double beside, double gate) {
  magnitude(s, dp, column, n, scale, lse, beside, gate);
}

EACH_MACHINE void gradient_row(
    float* s, float* dp, float* total, float* column, int64_t n, float scale, float lse, float beside, float gate) {
  gradient(s, dp, total, column, n, scale, lse, beside, gate);
}

EACH_MACHINE void gradient_row(
    double* s, double* dp, double* total, double* column, int64_t n, double scale, double lse, double beside, double gate) {
  gradient(s, dp, total, column, n, scale, lse, beside, gate);
}

EACH_MACHINE float weights_row(
    const float* s, float* p, int64_t n, float scale, float lse, float beside, float away, RowSummary<float>* found) {
  return weights(s, p, n, scale, lse, beside, away, found);
}

EACH_MACHINE int64_t find_row(const float* s, int64_t n, float scale, float score) { return find(s, n, scale, score); }

EACH_MACHINE void add_row(const float* p, float* total, int64_t n, float factor) { add(p, total, n, factor); }

EACH_MACHINE float weights_gradient_row(
    float* s, const float* of_key, float* dp, int64_t n, float scale, float lse, float beside, float entropy) {
  return of_key ? weights_gradient<true>(s, of_key, dp, n, scale, lse, beside, entropy)
                : weights_gradient<false>(s, of_key, dp, n, scale, lse, beside, entropy);
}

EACH_MACHINE double weights_row(
    const double* s, double* p, int64_t n, double scale, double lse, double beside, double away, RowSummary<double>* found) {
  return weights(s, p, n, scale, lse, beside, away, found);
}

EACH_MACHINE int64_t find_row(const double* s, int64_t n, double scale, double score) { return find(s, n, scale, score); }

EACH_MACHINE void add_row(const double* p, double* total, int64_t n, double factor) { add(p, total, n, factor); }

EACH_MACHINE double weights_gradient_row(
    double* s, const double* of_key, double* dp, int64_t n, double scale, double lse, double beside, double entropy) {
  return of_key ? weights_gradient<true>(s, of_key, dp, n, scale, lse, beside, entropy)
                : weights_gradient<false>(s, of_key, dp, n, scale, lse, beside, entropy);
}

}  // namespace symground
