// SSD in chunks: forward and backward in time linear in T (Dao and Gu 2024, section 6).
//
// A thread processes the chunks of some heads of one group of one example in order and keeps their state in its cache.
// Within a chunk it uses the quadratic form. Exponents are sums within a chunk, so that they keep their precision over
// any length. No two threads write to the same memory.
#pragma once

#include <cmath>
#include <vector>

#include "../attention/attention.h"
#include "rows.h"

namespace symground {

constexpr int64_t kChunk = 64;  // positions

// [B,T,·,n] with contiguous rows.
template <class T>
struct Rows {
  T* data;
  int64_t example, position, part, size;

  explicit Rows(const Tensor& x)
      : data(static_cast<T*>(x.data_ptr())),
        example(x.stride(0)), position(x.stride(1)), part(x.stride(2)), size(x.size(3)) {}

  T* at(int64_t b, int64_t t, int64_t h) const { return data + b * example + t * position + h * part; }
};

template <class T>
struct SSD {
  Rows<T> x, b, c;
  const T* dt;  // [B,T,H], of any strides
  int64_t dt_example, dt_position, dt_head;
  const T* a;  // [H]
  const int64_t* key_range;  // [B,2] or null
  const T* initial;  // [B,H,P,N] or null
  int64_t batch, length, heads, groups, size, state;

  SSD(const Tensor& x_, const Tensor& dt_, const Tensor& a_, const Tensor& b_, const Tensor& c_,
      const OptionalTensor& key_range_, const OptionalTensor& initial_)
      : x(x_), b(b_), c(c_),
        dt(static_cast<const T*>(dt_.data_ptr())),
        dt_example(dt_.stride(0)), dt_position(dt_.stride(1)), dt_head(dt_.stride(2)),
        a(static_cast<const T*>(a_.data_ptr())),
        key_range(key_range_ ? static_cast<const int64_t*>(key_range_->data_ptr()) : nullptr),
        initial(initial_ ? static_cast<const T*>(initial_->data_ptr()) : nullptr),
        batch(x_.size(0)), length(x_.size(1)), heads(x_.size(2)), groups(b_.size(2)), size(x_.size(3)),
        state(b_.size(3)) {}

  int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
  int64_t chunk() const { return std::min(kChunk, length); }
  int64_t of_state(int64_t example, int64_t h) const { return (example * heads + h) * size * state; }
  bool valid(int64_t example, int64_t t) const {
    return !key_range || (t >= key_range[2 * example] && t < key_range[2 * example + 1]);
  }
};

// Neighbouring heads of one group of one example.
struct Share {
  int64_t example, group, first, count;
};

// All heads, in shares as large as possible while every thread is busy.
template <class T>
std::vector<Share> shares_of(const SSD<T>& y) {
  const int64_t of_group = y.heads / y.groups;
  int64_t count = of_group;
  while (count > 1 && y.batch * y.groups * ((of_group + count - 1) / count) < threads()) count = (count + 1) / 2;
  std::vector<Share> found;
  for (int64_t b = 0; b < y.batch; ++b) {
    for (int64_t g = 0; g < y.groups; ++g) {
      for (int64_t h = 0; h < of_group; h += count) {
        found.push_back({b, g, g * of_group + h, std::min(count, of_group - h)});
      }
    }
  }
  return found;
}

// One thread's memory for the chunks of a share: Q positions, R heads of size P concatenated (W = R·P), state N.
template <class T>
struct Chunk {
  const SSD<T>& y;
  const Share& share;
  int64_t wide;
  T *scores, *within, *mixing;  // [Q,Q]
  T *timed, *side;  // [Q,W]: x · dt, and that times the decay to the chunk's end
  T *read;  // [Q,N]: a copy of B if some of it must not be read
  double* decay;  // [R,Q]: Σ dt·A from the chunk's start
  T* dt;  // [R,Q], 0 at positions that are not valid
  int64_t start = 0, rows = 0;

  static int64_t numbers(const SSD<T>& y, int64_t count) {
    const int64_t q = y.chunk();
    return (1 + sizeof(double) / sizeof(T)) * q * count + 3 * q * q + 2 * q * count * y.size + q * y.state;
  }

  Chunk(const SSD<T>& y_, const Share& share_, T* memory) : y(y_), share(share_), wide(share_.count * y_.size) {
    const int64_t q = y.chunk();
    const auto take = [&](int64_t n) { T* taken = memory; memory += n; return taken; };
    decay = reinterpret_cast<double*>(take(q * share.count * sizeof(double) / sizeof(T)));  // first, for its alignment
    scores = take(q * q), within = take(q * q), mixing = take(q * q);
    timed = take(q * wide), side = take(q * wide);
    read = take(q * y.state);
    dt = take(q * share.count);
  }

  double decay_to_end(int64_t r) const { return decay[r * y.chunk() + rows - 1]; }
  Matrix<T> matrix(T* data, int64_t columns) const { return {data, rows, columns, columns, 1}; }
  // The r-th head of a share's concatenated heads.
  Matrix<T> head(T* data, int64_t r, int64_t stride) const { return {data + r * y.size, rows, y.size, stride, 1}; }
  Matrix<T> c() const { return {y.c.at(share.example, start, share.group), rows, y.state, y.c.position, 1}; }
  Matrix<T> states(T* data) const { return {data, wide, y.state, y.state, 1}; }

  Matrix<T> b() const {
    if (!y.key_range) return {y.b.at(share.example, start, share.group), rows, y.state, y.b.position, 1};
    return matrix(read, y.state);
  }

  // Computes the chunk's decay, dt, timed, side and B from the inputs.
  void load(int64_t index) {
    start = index * kChunk;
    rows = std::min(kChunk, y.length - start);
    const int64_t q = y.chunk();
    for (int64_t r = 0; r < share.count; ++r) {
      const T* steps = y.dt + share.example * y.dt_example + start * y.dt_position + (share.first + r) * y.dt_head;
      double sum = 0;
      for (int64_t i = 0; i < rows; ++i) {
        const T step = y.valid(share.example, start + i) ? steps[i * y.dt_position] : T(0);
        sum += double(step) * y.a[share.first + r];
        dt[r * q + i] = step;
        decay[r * q + i] = sum;
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      const bool valid = y.valid(share.example, start + i);
      if (y.key_range) {
        const T* row = y.b.at(share.example, start + i, share.group);
        T* to = read + i * y.state;
        if (valid) {
          std::copy_n(row, y.state, to);
        } else {
          std::fill_n(to, y.state, T(0));
        }
      }
      for (int64_t r = 0; r < share.count; ++r) {
        T *to = timed + i * wide + r * y.size, *beside = side + i * wide + r * y.size;
        if (!valid) {
          std::fill_n(to, y.size, T(0));
          std::fill_n(beside, y.size, T(0));
          continue;
        }
        scale_row(y.x.at(share.example, start + i, share.first + r), to, y.size, dt[r * q + i]);
        scale_row(to, beside, y.size, T(std::exp(decay_to_end(r) - decay[r * q + i])));
      }
    }
  }

  // Advances the state of the share's heads [W,N] from before the chunk to after it.
  void advance(T* state) const {
    for (int64_t r = 0; r < share.count; ++r) {
      T* own = state + r * y.size * y.state;
      scale_row(own, own, y.size * y.state, T(std::exp(decay_to_end(r))));
    }
    multiply(states(state), matrix(side, wide).transposed(), b(), T(1), true);
  }

  void score() const { multiply(matrix(scores, rows), c(), b().transposed(), T(1), false); }

  // M of head r without dt, and the decay within it.
  void mix(int64_t r) const {
    const double* own = decay + r * y.chunk();
    for (int64_t i = 0; i < rows; ++i) {
      decay_row(own, scores + i * rows, within + i * rows, mixing + i * rows, i + 1, own[i]);
      std::fill(mixing + i * rows + i + 1, mixing + (i + 1) * rows, T(0));
    }
  }

  // out[i] = x[i] times the decay of head r from the chunk's start, for all its positions.
  void fade(const T* x, int64_t stride, T* out, int64_t out_stride) const {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t r = 0; r < share.count; ++r) {
        scale_row(x + i * stride + r * y.size, out + i * out_stride + r * y.size, y.size,
                  T(std::exp(decay[r * y.chunk() + i])));
      }
    }
  }

  void begin(T* state) const {
    if (y.initial) {
      std::copy_n(y.initial + y.of_state(share.example, share.first), wide * y.state, state);
    } else {
      std::fill_n(state, wide * y.state, T(0));
    }
  }
};

// out [B,T,H,P] and the state after the last position, both contiguous.
template <class T>
void run_ssd(const SSD<T>& y, T* out, T* last) {
  const auto shares = shares_of(y);
  const int64_t row = y.heads * y.size;
  const Shares<T> memory(threads(), Chunk<T>::numbers(y, y.heads / y.groups));
  for_each_task(shares.size(), [&](int64_t task, int64_t worker) {
    const Share& share = shares[task];
    Chunk<T> chunk(y, share, memory.of(worker));
    T* state = last + y.of_state(share.example, share.first);
    chunk.begin(state);
    for (int64_t index = 0; index < y.chunks(); ++index) {
      chunk.load(index);
      chunk.score();
      T* into = out + (share.example * y.length + chunk.start) * row + share.first * y.size;
      const Matrix<T> whole{into, chunk.rows, chunk.wide, row, 1};
      const bool before = index > 0 || y.initial;
      if (before) {
        multiply(whole, chunk.c(), chunk.states(state).transposed(), T(1), false);
        chunk.fade(into, row, into, row);
      }
      for (int64_t r = 0; r < share.count; ++r) {
        chunk.mix(r);
        multiply(chunk.head(into, r, row), chunk.matrix(chunk.mixing, chunk.rows),
                 chunk.head(chunk.timed, r, chunk.wide), T(1), before);
      }
      chunk.advance(state);
    }
  });
}

}  // namespace symground
