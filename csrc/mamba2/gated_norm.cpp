// The loops of gated_norm.h, a row at a time while it is in the cache.

#include "gated_norm.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/checks.h"
#include "../common/exponential.h"

namespace symground {
namespace {

constexpr int64_t kBlock = 64;  // rows

// [B,T,W]
template <class T>
struct Wide {
  T* data;
  int64_t example, position, length;

  explicit Wide(const Tensor& x)
      : data(static_cast<T*>(x.data_ptr())), example(x.stride(0)), position(x.stride(1)), length(x.size(1)) {}

  T* row(int64_t i) const { return data + i / length * example + i % length * position; }
};

template <class T>
struct GatedNorm {
  Wide<T> y, x, z;
  const T *skip, *weight;
  int64_t rows, width, heads, groups;
  T eps;

  GatedNorm(
      const Tensor& y_, const Tensor& x_, const Tensor& skip_, const Tensor& z_, const Tensor& weight_,
      int64_t groups_, double eps_)
      : y(y_), x(x_), z(z_),
        skip(static_cast<const T*>(skip_.data_ptr())), weight(static_cast<const T*>(weight_.data_ptr())),
        rows(y_.size(0) * y_.size(1)), width(y_.size(2)), heads(skip_.size(0)), groups(groups_), eps(T(eps_)) {}
};

// u = y + skip · x of one row.
template <class T>
INLINE void skipped(const GatedNorm<T>& g, int64_t i, T* __restrict u) {
  const T* __restrict y = g.y.row(i);
  const T* __restrict x = g.x.row(i);
  const int64_t size = g.width / g.heads;
  for (int64_t h = 0; h < g.heads; ++h) {
    const T skip = g.skip[h];
#pragma omp simd
    for (int64_t j = h * size; j < (h + 1) * size; ++j) u[j] = y[j] + skip * x[j];
  }
}

template <class T>
INLINE T mean_square(const T* __restrict v, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += v[j] * v[j];
  return sum / T(n);
}

template <class T>
INLINE void forward_rows(const GatedNorm<T>& g, const Wide<T>& out, int64_t begin, int64_t end) {
  const int64_t n = g.width / g.groups;
  for (int64_t i = begin; i < end; ++i) {
    T* __restrict v = out.row(i);
    const T* __restrict z = g.z.row(i);
    skipped(g, i, v);
#pragma omp simd
    for (int64_t j = 0; j < g.width; ++j) v[j] *= z[j] / (T(1) + exponential(-z[j]));
    for (int64_t k = 0; k < g.groups; ++k) {
      const T scale = T(1) / std::sqrt(mean_square(v + k * n, n) + g.eps);
      const T* __restrict w = g.weight + k * n;
      T* __restrict to = v + k * n;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) to[j] = w[j] * (to[j] * scale);
    }
  }
}

// The terms of these rows are added to dskip [H] and dweight [W]; u, s, v [W] are the thread's memory.
template <class T>
INLINE void backward_rows(
    const GatedNorm<T>& g, const Wide<T>& grad, const Wide<T>& dy, const Wide<T>& dx, const Wide<T>& dz,
    T* __restrict dskip, T* __restrict dweight, T* __restrict u, T* __restrict s, T* __restrict v, int64_t begin,
    int64_t end) {
  const int64_t n = g.width / g.groups, size = g.width / g.heads;
  for (int64_t i = begin; i < end; ++i) {
    const T* __restrict given = grad.row(i);
    const T* __restrict z = g.z.row(i);
    T* __restrict to_y = dy.row(i);
    T* __restrict to_x = dx.row(i);
    T* __restrict to_z = dz.row(i);
    const T* __restrict x = g.x.row(i);
    skipped(g, i, u);
#pragma omp simd
    for (int64_t j = 0; j < g.width; ++j) {
      s[j] = T(1) / (T(1) + exponential(-z[j]));
      v[j] = u[j] * (z[j] * s[j]);
    }
    for (int64_t k = 0; k < g.groups; ++k) {
      const int64_t at = k * n;
      const T scale = T(1) / std::sqrt(mean_square(v + at, n) + g.eps);
      T along = 0;  // mean of ∂L/∂n · n, with n the normalised numbers
#pragma omp simd reduction(+ : along)
      for (int64_t j = at; j < at + n; ++j) along += (given[j] * g.weight[j]) * (v[j] * scale);
      along /= T(n);
#pragma omp simd
      for (int64_t j = at; j < at + n; ++j) {
        const T normed = v[j] * scale, sigma = s[j];
        dweight[j] += given[j] * normed;
        const T dv = scale * (given[j] * g.weight[j] - normed * along);
        to_z[j] = dv * u[j] * (sigma * (T(1) + z[j] * (T(1) - sigma)));
        to_y[j] = dv * (z[j] * sigma);
      }
    }
    for (int64_t h = 0; h < g.heads; ++h) {
      const T skip = g.skip[h];
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = h * size; j < (h + 1) * size; ++j) {
        sum += to_y[j] * x[j];
        to_x[j] = skip * to_y[j];
      }
      dskip[h] += sum;
    }
  }
}

#define FOR_DTYPE(T)                                                                                            \
  EACH_MACHINE void forward_each(const GatedNorm<T>& g, const Wide<T>& out, int64_t begin, int64_t end) {       \
    forward_rows(g, out, begin, end);                                                                           \
  }                                                                                                             \
  EACH_MACHINE void backward_each(                                                                              \
      const GatedNorm<T>& g, const Wide<T>& grad, const Wide<T>& dy, const Wide<T>& dx, const Wide<T>& dz,      \
      T* dskip, T* dweight, T* u, T* s, T* v, int64_t begin, int64_t end) {                                     \
    backward_rows(g, grad, dy, dx, dz, dskip, dweight, u, s, v, begin, end);                                    \
  }
FOR_DTYPE(double)
FOR_DTYPE(float)
#undef FOR_DTYPE

// work(block, its first row, one past its last)
template <class Work>
void for_each_block(int64_t rows, const Work& work) {
  torch::stable::parallel_for(0, (rows + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i, i * kBlock, std::min((i + 1) * kBlock, rows));
  });
}

template <class Run>
void with_dtype(const Tensor& x, const Run& run) {
  x.scalar_type() == torch::headeronly::ScalarType::Double ? run(0.0) : run(0.0f);
}

Checked checked_norm(
    const char* op, const Tensor& y, const Tensor& x, const Tensor& skip, const Tensor& z, const Tensor& weight,
    int64_t groups) {
  const Checked check(op, y);
  check.computes();
  check("y", y, {-1, -1, -1}, Memory::rows);
  const int64_t batch = y.size(0), length = y.size(1), width = y.size(2);
  check("x", x, {batch, length, width}, Memory::rows);
  check("z", z, {batch, length, width}, Memory::rows);
  check("skip", skip, {-1});
  check("weight", weight, {width});
  const int64_t heads = skip.size(0);
  check.that(heads > 0 && width % heads == 0, "skip: expected H to divide W = ", width, ", got H = ", heads);
  check.that(groups > 0 && width % groups == 0, "groups: expected a divisor of W = ", width, ", got ", groups);
  return check;
}

}  // namespace

void run_gated_norm(
    const Tensor& y, const Tensor& x, const Tensor& skip, const Tensor& z, const Tensor& weight, int64_t groups,
    double eps, const Tensor& out) {
  const auto check = checked_norm("gated_norm", y, x, skip, z, weight, groups);
  check.written("out", out, {y.size(0), y.size(1), y.size(2)}, Memory::rows);
  with_dtype(y, [&]<class T>(T) {
    const GatedNorm<T> g(y, x, skip, z, weight, groups, eps);
    const Wide<T> into(out);
    for_each_block(g.rows, [&](int64_t, int64_t begin, int64_t end) { forward_each(g, into, begin, end); });
  });
}

void run_gated_norm_backward(
    const Tensor& grad, const Tensor& y, const Tensor& x, const Tensor& skip, const Tensor& z, const Tensor& weight,
    int64_t groups, double eps, const Tensor& dy, const Tensor& dx, const Tensor& dskip, const Tensor& dz,
    const Tensor& dweight) {
  const auto check = checked_norm("gated_norm_backward", y, x, skip, z, weight, groups);
  const int64_t batch = y.size(0), length = y.size(1), width = y.size(2);
  check("grad", grad, {batch, length, width}, Memory::rows);
  check.written("dy", dy, {batch, length, width}, Memory::rows);
  check.written("dx", dx, {batch, length, width}, Memory::rows);
  check.written("dz", dz, {batch, length, width}, Memory::rows);
  check("dskip", dskip, {skip.size(0)});
  check("dweight", dweight, {width});
  with_dtype(y, [&]<class T>(T) {
    const GatedNorm<T> g(y, x, skip, z, weight, groups, eps);
    const Wide<T> given(grad), to_y(dy), to_x(dx), to_z(dz);
    // Each block has its own part, and the parts are added in order, so the sum does not depend on the threads.
    const int64_t numbers = g.heads + g.width, blocks = (g.rows + kBlock - 1) / kBlock;
    std::vector<T> parts(blocks * numbers);
    for_each_block(g.rows, [&](int64_t block, int64_t begin, int64_t end) {
      std::vector<T> memory(3 * g.width);
      T *u = memory.data(), *part = parts.data() + block * numbers;
      backward_each(
          g, given, to_y, to_x, to_z, part, part + g.heads, u, u + g.width, u + 2 * g.width, begin, end);
    });
    T *of_skip = static_cast<T*>(dskip.data_ptr()), *of_weight = static_cast<T*>(dweight.data_ptr());
    std::fill_n(of_skip, g.heads, T(0));
    std::fill_n(of_weight, g.width, T(0));
    for (int64_t block = 0; block < blocks; ++block) {
      const T* part = parts.data() + block * numbers;
      for (int64_t h = 0; h < g.heads; ++h) of_skip[h] += part[h];
      for (int64_t j = 0; j < g.width; ++j) of_weight[j] += part[g.heads + j];
    }
  });
}

}  // namespace symground
