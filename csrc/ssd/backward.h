// The gradients of SSD, chunk by chunk from the last to the first; the state's gradient is carried along.
#pragma once

#include "ssd.h"

namespace symground {

// The outputs: dx [B,T,H,P] is added to, db and dc [B,T,G,N] are overwritten, all with any strides. ddt [B,T,H] and the
// others are contiguous.
template <class T>
struct SSDGradients {
  Rows<T> grad_y;
  const T* grad_state;  // [B,H,P,N] or null
  Rows<T> dx;
  T *ddt, *da;  // da [B,H]: the caller zeroes it and sums it over the examples
  Rows<T> db, dc;
  T* dinitial;  // [B,H,P,N], even if there is no initial state
};

template <class T>
struct BackwardChunk {
  Chunk<T> own;
  T *states;  // [chunks,W,N], the state before each chunk
  T *faded, *after;  // [Q,W]: dY times the decay from the start; ∂L/∂(x·dt)
  T *of_mixing, *of_scores;  // [Q,Q]
  T *of_c;  // [Q,N] for one head
  T *read, *written, *pairs;  // [R,Q]
  T *inner;  // [R]

  // Even without positions, the state before the first is stored.
  static int64_t stored(const SSD<T>& y) { return std::max<int64_t>(1, y.chunks()); }

  static int64_t numbers(const SSD<T>& y, int64_t count) {
    const int64_t q = y.chunk(), wide = count * y.size;
    return Chunk<T>::numbers(y, count) + stored(y) * wide * y.state + 2 * q * wide + 2 * q * q + q * y.state +
           3 * count * q + count;
  }

  BackwardChunk(const SSD<T>& y, const Share& share, T* memory) : own(y, share, memory) {
    const int64_t q = y.chunk(), wide = own.wide, count = share.count;
    memory += Chunk<T>::numbers(y, count);
    const auto take = [&](int64_t n) { T* taken = memory; memory += n; return taken; };
    states = take(stored(y) * wide * y.state);
    faded = take(q * wide), after = take(q * wide);
    of_mixing = take(q * q), of_scores = take(q * q);
    of_c = take(q * y.state);
    read = take(count * q), written = take(count * q), pairs = take(count * q);
    inner = take(count);
  }

  T* state(int64_t index) const { return states + index * own.wide * own.y.state; }
};

// The terms of each gradient that go through the state before the chunk or after it; `dstate` is the latter's gradient.
template <class T>
void through_states(
    const BackwardChunk<T>& z, const T* state, const T* dstate, const Matrix<T>& db, const Matrix<T>& dc) {
  const Chunk<T>& own = z.own;
  const SSD<T>& y = own.y;
  const int64_t n = y.state, q = y.chunk(), one = y.size * n;
  for (int64_t r = 0; r < own.share.count; ++r) {
    // One head at a time, since each head's product with C is the gradient of its decay from the chunk's start.
    const Matrix<T> of_head{const_cast<T*>(state) + r * one, y.size, n, n, 1};
    multiply(own.matrix(z.of_c, n), own.head(z.faded, r, own.wide), of_head, T(1), false);
    for (int64_t i = 0; i < own.rows; ++i) {
      const T* mine = z.of_c + i * n;
      z.read[r * q + i] = dot_row(mine, own.c().data + i * own.c().row_stride, n);
      add_row(mine, dc.data + i * dc.row_stride, n, T(1));
    }
    z.inner[r] = dot_row(state + r * one, dstate + r * one, one) * T(std::exp(own.decay_to_end(r)));
  }
  const auto next = own.states(const_cast<T*>(dstate));
  multiply(own.matrix(z.after, own.wide), own.b(), next.transposed(), T(1), false);
  multiply(db, own.matrix(own.side, own.wide), next, T(1), true);
  for (int64_t i = 0; i < own.rows; ++i) {
    for (int64_t r = 0; r < own.share.count; ++r) {
      T* row = z.after + i * own.wide + r * y.size;
      scale_row(row, row, y.size, T(std::exp(own.decay_to_end(r) - own.decay[r * q + i])));
      z.written[r * q + i] = dot_row(row, own.timed + i * own.wide + r * y.size, y.size);
    }
  }
}

// The terms of each gradient between positions of the chunk.
template <class T>
void through_pairs(
    const BackwardChunk<T>& z, const Matrix<T>& grad_y, const Matrix<T>& db, const Matrix<T>& dc) {
  const Chunk<T>& own = z.own;
  const int64_t q = own.y.chunk(), rows = own.rows, size = own.y.size;
  std::fill_n(z.of_scores, rows * rows, T(0));
  for (int64_t r = 0; r < own.share.count; ++r) {
    const Matrix<T> of_y{grad_y.data + r * size, rows, size, grad_y.row_stride, 1};
    multiply(own.matrix(z.of_mixing, rows), of_y, own.head(own.timed, r, own.wide).transposed(), T(1), false);
    own.mix(r);
    T* pairs = z.pairs + r * q;
    std::fill_n(pairs, rows, T(0));
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * rows;
      T pair[kChunk];
      pairs_row(z.of_mixing + at, own.mixing + at, own.within + at, z.of_scores + at, pair, i + 1);
      // A pair decays over the positions between its two. Each position sums its own crossing pairs, since differences
      // of sums over all pairs would keep the rounding of large pairs elsewhere.
      T crossing = 0;
      for (int64_t t = 1; t <= i; ++t) pairs[t] += crossing += pair[t - 1];
    }
    multiply(own.head(z.after, r, own.wide), own.matrix(own.mixing, rows).transposed(), of_y, T(1), true);
  }
  multiply(dc, own.matrix(z.of_scores, rows), own.b(), T(1), true);
  multiply(db, own.matrix(z.of_scores, rows).transposed(), own.c(), T(1), true);
}

// dx, ddt and dA of the chunk, from what the two functions above computed.
template <class T>
void settle(const BackwardChunk<T>& z, const SSDGradients<T>& out) {
  const Chunk<T>& own = z.own;
  const SSD<T>& y = own.y;
  const int64_t q = y.chunk(), b = own.share.example;
  for (int64_t r = 0; r < own.share.count; ++r) {
    const int64_t h = own.share.first + r;
    T* of_decay = z.read + r * q;  // ∂L/∂(dt·A): the terms that cross a position, added from both sides
    T sum = 0;
    for (int64_t i = own.rows - 1; i >= 0; --i) of_decay[i] = sum += of_decay[i];
    T before = z.inner[r], of_a = 0;
    for (int64_t i = 0; i < own.rows; ++i) {
      of_decay[i] += before + z.pairs[r * q + i];
      before += z.written[r * q + i];
      of_a += own.dt[r * q + i] * of_decay[i];
    }
    out.da[b * y.heads + h] += of_a;
    for (int64_t i = 0; i < own.rows; ++i) {
      const int64_t at = (b * y.length + own.start + i) * y.heads + h;
      const T* of_timed = z.after + i * own.wide + r * y.size;
      if (!y.valid(b, own.start + i)) {
        out.ddt[at] = T(0);
        continue;
      }
      add_row(of_timed, out.dx.at(b, own.start + i, h), y.size, own.dt[r * q + i]);
      out.ddt[at] = dot_row(of_timed, y.x.at(b, own.start + i, h), y.size) + y.a[h] * of_decay[i];
    }
  }
}

template <class T>
void run_ssd_backward(const SSD<T>& y, const SSDGradients<T>& out) {
  const auto shares = shares_of(y);
  if (shares.empty()) return;
  // If a group's heads are in several shares, each share has its own db and dc, which are summed in order afterwards.
  const int64_t per_group = shares.size() / (y.batch * y.groups), row = 2 * y.state;
  std::vector<T> parts(shares.size() * y.length * row);  // [example,group,share,T,2·N]: db, dc
  const Shares<T> memory(threads(), BackwardChunk<T>::numbers(y, y.heads / y.groups));
  for_each_task(shares.size(), [&](int64_t task, int64_t worker) {
    const Share& share = shares[task];
    const int64_t b = share.example;
    T* part = parts.data() + task * y.length * row;
    BackwardChunk<T> z(y, share, memory.of(worker));
    Chunk<T>& own = z.own;
    own.begin(z.state(0));
    for (int64_t index = 0; index + 1 < y.chunks(); ++index) {
      own.load(index);
      std::copy_n(z.state(index), own.wide * y.state, z.state(index + 1));
      own.advance(z.state(index + 1));
    }
    T* dstate = out.dinitial + y.of_state(b, share.first);
    if (out.grad_state) {
      std::copy_n(out.grad_state + y.of_state(b, share.first), own.wide * y.state, dstate);
    } else {
      std::fill_n(dstate, own.wide * y.state, T(0));
    }
    for (int64_t index = y.chunks() - 1; index >= 0; --index) {
      own.load(index);
      own.score();
      const Matrix<T> grad_y{out.grad_y.at(b, own.start, share.first), own.rows, own.wide, out.grad_y.position, 1};
      T* at = part + own.start * row;
      const Matrix<T> of_b{at, own.rows, y.state, row, 1}, of_c{at + y.state, own.rows, y.state, row, 1};
      own.fade(grad_y.data, grad_y.row_stride, z.faded, own.wide);
      through_states(z, z.state(index), dstate, of_b, of_c);
      through_pairs(z, grad_y, of_b, of_c);
      settle(z, out);
      for (int64_t r = 0; r < share.count; ++r) {
        T* mine = dstate + r * y.size * y.state;
        scale_row(mine, mine, y.size * y.state, T(std::exp(own.decay_to_end(r))));
      }
      multiply(own.states(dstate), own.matrix(z.faded, own.wide).transposed(), own.c(), T(1), true);
      for (int64_t i = 0; i < own.rows; ++i) {
        if (!y.valid(b, own.start + i)) std::fill_n(of_b.data + i * row, y.state, T(0));
      }
    }
  });
  torch::stable::parallel_for(0, y.batch * y.groups * y.length, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % y.length, g = i / y.length % y.groups, b = i / y.length / y.groups;
      T *db = out.db.at(b, t, g), *dc = out.dc.at(b, t, g);
      const T* part = parts.data() + ((b * y.groups + g) * per_group * y.length + t) * row;
      std::copy_n(part, y.state, db);
      std::copy_n(part + y.state, y.state, dc);
      for (int64_t number = 1; number < per_group; ++number) {
        part += y.length * row;
        add_row(part, db, y.state, T(1));
        add_row(part + y.state, dc, y.state, T(1));
      }
    }
  });
}

}  // namespace symground
