// One call of an operator: its tensors, and the tiles of queries × keys that a thread processes one by one.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>

#include "../common/checks.h"
#include "../common/matrix.h"

namespace symground {

constexpr int64_t kTile = 128;  // queries

// [B,T,H,D] with any strides, indexed by head.
template <class T>
struct Heads {
  T* data;
  int64_t example, head, position, feature, size;

  explicit Heads(const Tensor& x)
      : data(static_cast<T*>(x.data_ptr())),
        example(x.stride(0)),
        head(x.stride(1)),
        position(x.stride(2)),
        feature(x.stride(3)),
        size(x.size(3)) {}

  Matrix<T> operator()(int64_t b, int64_t h, int64_t from, int64_t to) const {
    return {data + b * example + h * head + from * position, to - from, size, position, feature};
  }
};

template <class T>
struct Attention {
  Heads<T> q, k, v, grad_out;
  const T *lse, *gate;  // [B,H,T] and, or null, [B,H]
  const int64_t* key_range;  // [B,2] or null
  int64_t batch, heads, key_heads, queries, keys, window;
  bool causal;
  T scale;

  Attention(
      const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& grad_out_, const Tensor& lse_,
      const OptionalTensor& gate_, bool causal_, double scale_, const OptionalTensor& key_range_,
      std::optional<int64_t> window_)
      : q(q_), k(k_), v(v_), grad_out(grad_out_),
        lse(static_cast<const T*>(lse_.data_ptr())),
        gate(gate_ ? static_cast<const T*>(gate_->data_ptr()) : nullptr),
        key_range(key_range_ ? static_cast<const int64_t*>(key_range_->data_ptr()) : nullptr),
        batch(q_.size(0)), heads(q_.size(1)), key_heads(k_.size(1)), queries(q_.size(2)), keys(k_.size(2)),
        window(std::min(window_.value_or(0), keys)), causal(causal_), scale(T(scale_)) {}

  int64_t tiles() const { return (queries + kTile - 1) / kTile; }
  // The most numbers in one product of a tile.
  int64_t tile_numbers() const { return std::min(kTile, queries) * keys; }
  int64_t key_head(int64_t h) const { return h / (heads / key_heads); }
  T gate_of(int64_t b, int64_t h) const { return gate ? gate[b * heads + h] : T(1); }
  bool open(int64_t b, int64_t h) const { return gate_of(b, h) != T(0); }
  T lse_of(int64_t b, int64_t h, int64_t i) const { return lse[(b * heads + h) * queries + i]; }

  // The keys [first, last) that query i of example b sees. If key_range was changed after its check, its values may be
  // anything, so they are clamped to the keys.
  int64_t first(int64_t b, int64_t i) const {
    const int64_t low = key_range ? std::max<int64_t>(0, key_range[2 * b]) : 0;
    return window ? std::max(low, i + keys - queries - window + 1) : low;
  }
  int64_t last(int64_t b, int64_t i) const {
    const int64_t high = key_range ? std::min(keys, key_range[2 * b + 1]) : keys;
    return causal ? std::min(high, i + keys - queries + 1) : high;
  }
};

// Queries [start, stop) of one example, and the keys [first, last) that any of them sees.
template <class T>
struct Tile {
  int64_t b, start, stop, first, last;

  Tile(const Attention<T>& x, int64_t b_, int64_t start_, int64_t stop_)
      : b(b_), start(start_), stop(stop_), first(x.first(b, start)), last(x.last(b, stop - 1)) {}

  Tile(const Attention<T>& x, int64_t b_, int64_t index)
      : Tile(x, b_, index * kTile, std::min((index + 1) * kTile, x.queries)) {}

  bool empty() const { return first >= last; }
  int64_t columns() const { return last - first; }
  Matrix<T> matrix(T* data, int64_t rows) const { return {data, rows, columns(), columns(), 1}; }
  Matrix<T> matrix(T* data) const { return matrix(data, stop - start); }

  // The columns [from, to) of the tile that query i sees.
  std::pair<int64_t, int64_t> seen(const Attention<T>& x, int64_t i) const {
    const int64_t from = std::clamp<int64_t>(x.first(b, i) - first, 0, columns());
    return {from, std::clamp<int64_t>(x.last(b, i) - first, from, columns())};
  }
};

// s = q kᵀ of head h, for these rows of q against the tile's keys.
template <class T>
void scores(const Attention<T>& x, const Tile<T>& tile, int64_t h, const Matrix<T>& q, T* s) {
  multiply(tile.matrix(s, q.rows), q, x.k(tile.b, x.key_head(h), tile.first, tile.last).transposed(), T(1), false);
}

// The same, and dp = dO vᵀ.
template <class T>
void products(
    const Attention<T>& x, const Tile<T>& tile, int64_t h, const Matrix<T>& q, const Matrix<T>& grad_out, T* s, T* dp) {
  scores(x, tile, h, q, s);
  multiply(tile.matrix(dp, q.rows), grad_out, x.v(tile.b, x.key_head(h), tile.first, tile.last).transposed(), T(1),
           false);
}

template <class T>
void products(const Attention<T>& x, const Tile<T>& tile, int64_t h, T* s, T* dp) {
  products(x, tile, h, x.q(tile.b, h, tile.start, tile.stop), x.grad_out(tile.b, h, tile.start, tile.stop), s, dp);
}

}  // namespace symground
