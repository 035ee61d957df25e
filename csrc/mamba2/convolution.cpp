// The loops of convolution.h, a block of positions at a time, so that each number of x is read from memory once.

#include "convolution.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/checks.h"
#include "../common/exponential.h"

namespace symground {
namespace {

constexpr int64_t kBlock = 64;  // positions

// [B,T,C]
template <class T>
struct Channels {
  T* data;
  int64_t example, position;

  explicit Channels(const Tensor& x)
      : data(static_cast<T*>(x.data_ptr())), example(x.stride(0)), position(x.stride(1)) {}

  T* at(int64_t b, int64_t t) const { return data + b * example + t * position; }
};

template <class T>
struct Convolution {
  Channels<T> x;
  const T *weight, *bias, *initial;  // the last two may be null
  int64_t batch, length, channels, taps;
  bool silu;

  Convolution(
      const Tensor& x_, const Tensor& weight_, const std::optional<Tensor>& bias_,
      const std::optional<Tensor>& initial_, bool silu_)
      : x(x_), weight(static_cast<const T*>(weight_.data_ptr())),
        bias(bias_ ? static_cast<const T*>(bias_->data_ptr()) : nullptr),
        initial(initial_ ? static_cast<const T*>(initial_->data_ptr()) : nullptr),
        batch(x_.size(0)), length(x_.size(1)), channels(x_.size(2)), taps(weight_.size(0)), silu(silu_) {}

  int64_t blocks() const { return (length + kBlock - 1) / kBlock; }

  // The channels that tap k of position t multiplies; null before the first position without an initial state.
  const T* met(int64_t b, int64_t t, int64_t k) const {
    const int64_t s = t + k - (taps - 1);
    if (s >= 0) return x.at(b, s);
    return initial ? initial + (b * (taps - 1) + s + taps - 1) * channels : nullptr;
  }
};

template <class T>
INLINE void add_product(const T* __restrict w, const T* __restrict x, T* __restrict sum, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) sum[c] += w[c] * x[c];
}

// The convolution at one position.
template <class T>
INLINE void convolve(const Convolution<T>& y, int64_t b, int64_t t, T* __restrict out) {
  const int64_t n = y.channels;
  if (y.bias) {
    std::copy_n(y.bias, n, out);
  } else {
    std::fill_n(out, n, T(0));
  }
  for (int64_t k = 0; k < y.taps; ++k) {
    if (const T* met = y.met(b, t, k)) add_product(y.weight + k * n, met, out, n);
  }
}

template <class T>
INLINE void forward_block(const Convolution<T>& y, const Channels<T>& out, int64_t b, int64_t from, int64_t to) {
  for (int64_t t = from; t < to; ++t) {
    T* row = out.at(b, t);
    convolve(y, b, t, row);
    if (!y.silu) continue;
#pragma omp simd
    for (int64_t c = 0; c < y.channels; ++c) row[c] = row[c] / (T(1) + exponential(-row[c]));
  }
}

// g [kBlock+K-1,C] is the thread's memory; the block's terms are added to dweight [K+1,C].
template <class T>
INLINE void backward_block(
    const Convolution<T>& y, const Channels<T>& grad, const Channels<T>& dx, T* __restrict dweight, T* __restrict g,
    int64_t b, int64_t from, int64_t to) {
  const int64_t n = y.channels, taps = y.taps, last = std::min(to + taps - 1, y.length);
  for (int64_t t = from; t < last; ++t) {
    T* __restrict row = g + (t - from) * n;
    const T* __restrict given = grad.at(b, t);
    if (y.silu) {
      convolve(y, b, t, row);
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) {
        const T u = row[c], s = T(1) / (T(1) + exponential(-u));
        row[c] = given[c] * (s * (T(1) + u * (T(1) - s)));
      }
    } else {
      std::copy_n(given, n, row);
    }
  }
  for (int64_t t = from; t < to; ++t) {
    const T* row = g + (t - from) * n;
    for (int64_t k = 0; k < taps; ++k) {
      if (const T* met = y.met(b, t, k)) add_product(row, met, dweight + k * n, n);
    }
    T* __restrict bias = dweight + taps * n;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) bias[c] += row[c];
    T* into = dx.at(b, t);
    std::fill_n(into, n, T(0));
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t by = t + taps - 1 - k;  // the position whose tap k reads t
      if (by < last) add_product(y.weight + k * n, g + (by - from) * n, into, n);
    }
  }
}

#define FOR_DTYPE(T)                                                                                          \
  EACH_MACHINE void forward_each(                                                                             \
      const Convolution<T>& y, const Channels<T>& out, int64_t b, int64_t from, int64_t to) {                 \
    forward_block(y, out, b, from, to);                                                                       \
  }                                                                                                           \
  EACH_MACHINE void backward_each(                                                                            \
      const Convolution<T>& y, const Channels<T>& grad, const Channels<T>& dx, T* dweight, T* g, int64_t b,   \
      int64_t from, int64_t to) {                                                                             \
    backward_block(y, grad, dx, dweight, g, b, from, to);                                                     \
  }
FOR_DTYPE(double)
FOR_DTYPE(float)
#undef FOR_DTYPE

// work(block, example, its first position, one past its last)
template <class T, class Work>
void for_each_block(const Convolution<T>& y, const Work& work) {
  const int64_t blocks = y.blocks();
  torch::stable::parallel_for(0, y.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % blocks * kBlock;
      work(i, i / blocks, from, std::min(from + kBlock, y.length));
    }
  });
}

template <class Run>
void with_dtype(const Tensor& x, const Run& run) {
  x.scalar_type() == torch::headeronly::ScalarType::Double ? run(0.0) : run(0.0f);
}

Checked checked_convolution(
    const char* op, const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& initial) {
  const Checked check(op, x);
  check.computes();
  check("x", x, {-1, -1, -1}, Memory::rows);
  const int64_t channels = x.size(2);
  check("weight", weight, {-1, channels});
  check.that(weight.size(0) > 0, "weight: expected at least one tap, got none");
  check("bias", bias, {channels});
  check("initial", initial, {x.size(0), weight.size(0) - 1, channels});
  return check;
}

}  // namespace

void run_convolution(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& initial,
    bool silu, const Tensor& out) {
  const auto check = checked_convolution("convolution", x, weight, bias, initial);
  check.written("out", out, {x.size(0), x.size(1), x.size(2)}, Memory::rows);
  with_dtype(x, [&]<class T>(T) {
    const Convolution<T> y(x, weight, bias, initial, silu);
    const Channels<T> into(out);
    for_each_block(y, [&](int64_t, int64_t b, int64_t from, int64_t to) { forward_each(y, into, b, from, to); });
  });
}

void run_convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& initial, bool silu, const Tensor& dx, const Tensor& dweight) {
  const auto check = checked_convolution("convolution_backward", x, weight, bias, initial);
  check("grad", grad, {x.size(0), x.size(1), x.size(2)}, Memory::rows);
  check.written("dx", dx, {x.size(0), x.size(1), x.size(2)}, Memory::rows);
  check("dweight", dweight, {weight.size(0) + 1, x.size(2)});
  with_dtype(x, [&]<class T>(T) {
    const Convolution<T> y(x, weight, bias, initial, silu);
    const Channels<T> given(grad), into(dx);
    // Each block has its own part, and the parts are added in order, so the sum does not depend on the threads.
    const int64_t numbers = (y.taps + 1) * y.channels;
    std::vector<T> parts(y.batch * y.blocks() * numbers);
    for_each_block(y, [&](int64_t block, int64_t b, int64_t from, int64_t to) {
      std::vector<T> g((kBlock + y.taps - 1) * y.channels);
      backward_each(y, given, into, parts.data() + block * numbers, g.data(), b, from, to);
    });
    T* total = static_cast<T*>(dweight.data_ptr());
    std::fill_n(total, numbers, T(0));
    for (size_t i = 0; i < parts.size(); ++i) total[i % numbers] += parts[i];
  });
}

}  // namespace symground
