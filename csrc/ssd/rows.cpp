// Loops that compilers vectorise.

#include "rows.h"

#include "../common/exponential.h"

namespace symground {
namespace {

template <class T>
INLINE void decay(
    const double* __restrict from, const T* __restrict scores, T* __restrict within, T* __restrict mixing, int64_t n,
    double to) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T weight = exponential(T(to - from[j]));
    within[j] = weight;
    mixing[j] = scores[j] * weight;
  }
}

template <class T>
INLINE void scale(const T* x, T* out, int64_t n, T factor) {  // x and out may be the same
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = factor * x[j];
}

template <class T>
INLINE T dot(const T* __restrict x, const T* __restrict y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] * y[j];
  return sum;
}

template <class T>
INLINE void pairs(
    const T* __restrict of_mixing, const T* __restrict mixing, const T* __restrict within, T* __restrict of_scores,
    T* __restrict s, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    s[j] = of_mixing[j] * mixing[j];
    of_scores[j] += of_mixing[j] * within[j];
  }
}

}  // namespace

EACH_MACHINE void decay_row(
    const double* from, const float* scores, float* within, float* mixing, int64_t n, double to) {
  decay(from, scores, within, mixing, n, to);
}
EACH_MACHINE void decay_row(
    const double* from, const double* scores, double* within, double* mixing, int64_t n, double to) {
  decay(from, scores, within, mixing, n, to);
}

EACH_MACHINE void scale_row(const float* x, float* out, int64_t n, float factor) { scale(x, out, n, factor); }
EACH_MACHINE void scale_row(const double* x, double* out, int64_t n, double factor) { scale(x, out, n, factor); }

EACH_MACHINE float dot_row(const float* x, const float* y, int64_t n) { return dot(x, y, n); }
EACH_MACHINE double dot_row(const double* x, const double* y, int64_t n) { return dot(x, y, n); }

EACH_MACHINE void pairs_row(
    const float* of_mixing, const float* mixing, const float* within, float* of_scores, float* s, int64_t n) {
  pairs(of_mixing, mixing, within, of_scores, s, n);
}
EACH_MACHINE void pairs_row(
    const double* of_mixing, const double* mixing, const double* within, double* of_scores, double* s, int64_t n) {
  pairs(of_mixing, mixing, within, of_scores, s, n);
}

}  // namespace symground
