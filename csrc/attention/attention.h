// One call of an operator: its tensors, and the tiles of queries × keys that a thread processes one by one.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "../common/checks.h"
#include "../common/matrix.h"
#include "../common/rows.h"

namespace symground {

// How a query sees the keys, as the record `Mixing` in symground/ops/attention/mixing.py documents it.
struct Mixing {
  OptionalTensor gate;  // [B,H]
  bool causal;
  double scale;
  OptionalTensor key_range;  // [B,2]
  std::optional<int64_t> window;
  std::optional<double> softcap;
  OptionalTensor sink, slopes;  // [H]
  OptionalTensor segments, blocks;  // [B,S]
};

template <class T>
T* pointer(const OptionalTensor& x) {
  return x ? static_cast<T*>(x->data_ptr()) : nullptr;
}

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
  const T *lse, *gate, *sink, *slopes;  // [B,H,T] and, or null, [B,H], [H], [H]
  const int64_t *key_range, *segments, *blocks;  // [B,2], [B,S], [B,S] or null
  int64_t batch, heads, key_heads, queries, keys, window;
  bool causal;
  T scale, softcap;  // a softcap of 0 is none

  Attention(
      const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& grad_out_, const Tensor& lse_,
      const Mixing& how)
      : q(q_), k(k_), v(v_), grad_out(grad_out_),
        lse(static_cast<const T*>(lse_.data_ptr())),
        gate(pointer<const T>(how.gate)), sink(pointer<const T>(how.sink)), slopes(pointer<const T>(how.slopes)),
        key_range(pointer<const int64_t>(how.key_range)), segments(pointer<const int64_t>(how.segments)),
        blocks(pointer<const int64_t>(how.blocks)),
        batch(q_.size(0)), heads(q_.size(1)), key_heads(k_.size(1)), queries(q_.size(2)), keys(k_.size(2)),
        window(std::min(how.window.value_or(0), keys)), causal(how.causal), scale(T(how.scale)),
        softcap(T(how.softcap.value_or(0))) {}

  int64_t tiles() const { return (queries + kTile - 1) / kTile; }
  // The most numbers in one product of a tile.
  int64_t tile_numbers() const { return std::min(kTile, queries) * keys; }
  int64_t key_head(int64_t h) const { return h / (heads / key_heads); }
  T gate_of(int64_t b, int64_t h) const { return gate ? gate[b * heads + h] : T(1); }
  bool open(int64_t b, int64_t h) const { return gate_of(b, h) != T(0); }
  T lse_of(int64_t b, int64_t h, int64_t i) const { return lse[(b * heads + h) * queries + i]; }

  // The position of query i among the keys.
  int64_t at(int64_t i) const { return i + keys - queries; }
  // If key_range was changed after its check, its values may be anything, so they are clamped to the keys.
  int64_t low(int64_t b) const { return key_range ? std::max<int64_t>(0, key_range[2 * b]) : 0; }
  int64_t high(int64_t b) const { return key_range ? std::min(keys, key_range[2 * b + 1]) : keys; }

  // Without ids, query i of example b sees the keys [first, last).
  int64_t first(int64_t b, int64_t i) const { return window ? std::max(low(b), at(i) - window + 1) : low(b); }
  int64_t last(int64_t b, int64_t i) const { return causal ? std::min(high(b), at(i) + 1) : high(b); }

  // Whether ids say which keys a query sees; those that it sees need not be neighbours then.
  bool by_ids() const { return segments || blocks; }
  // What the row functions multiply s with: 1 where `Tile::logits` has done so already.
  T row_scale() const { return softcap != T(0) || slopes || by_ids() ? T(1) : scale; }
  T sink_of(int64_t h) const { return sink ? sink[h] : -std::numeric_limits<T>::infinity(); }
  // The sink's part of a row's sum of attention.
  T beside(int64_t h, T level) const { return sink ? std::exp(sink[h] - level) : T(0); }
};

// Queries [start, stop) of one example, and the keys [first, last) that any of them sees.
template <class T>
struct Tile {
  int64_t b, start, stop, first, last;

  // The columns [from, to) of the tile that a query sees, all of them or some.
  struct Columns {
    int64_t from, to;
    bool all;
  };
  std::vector<char> visible;     // by_ids: [stop - start, last - first]
  std::vector<Columns> of_query;  // by_ids: [stop - start]

  Tile(const Attention<T>& x, int64_t b_, int64_t start_, int64_t stop_)
      : b(b_), start(start_), stop(stop_), first(x.first(b, start)), last(x.last(b, stop - 1)) {
    if (x.by_ids()) find_visible(x);
  }

  Tile(const Attention<T>& x, int64_t b_, int64_t index)
      : Tile(x, b_, index * kTile, std::min((index + 1) * kTile, x.queries)) {}

  bool empty() const { return first >= last; }
  int64_t columns() const { return last - first; }
  Matrix<T> matrix(T* data, int64_t rows) const { return {data, rows, columns(), columns(), 1}; }
  Matrix<T> matrix(T* data) const { return matrix(data, stop - start); }

  // The columns [from, to) of the tile that query i sees; of those between, it may see some only if `by_ids`.
  std::pair<int64_t, int64_t> seen(const Attention<T>& x, int64_t i) const {
    if (x.by_ids()) return {of_query[i - start].from, of_query[i - start].to};
    const int64_t from = std::clamp<int64_t>(x.first(b, i) - first, 0, columns());
    return {from, std::clamp<int64_t>(x.last(b, i) - first, from, columns())};
  }

  // Columns [from, to) of the row s of query i: products become logits where they are more than products times the
  // scale, and −inf where the query does not see the key. bend (or null) becomes the derivative of the softcap.
  void logits(const Attention<T>& x, int64_t h, int64_t i, T* s, int64_t from, int64_t to, T* bend) const {
    if (x.softcap == T(0) && !x.slopes && !x.by_ids()) return;
    const T slope = x.slopes ? x.slopes[h] : T(0);
    logits_row(s + from, bend ? bend + from : nullptr, to - from, x.scale, x.softcap, slope, first + from - x.at(i));
    if (!x.by_ids() || of_query[i - start].all) return;
    const char* row = visible.data() + (i - start) * columns();
    for (int64_t j = from; j < to; ++j) s[j] = row[j] ? s[j] : -std::numeric_limits<T>::infinity();
  }

 private:
  // Narrows the keys to those that some query of the tile sees.
  void find_visible(const Attention<T>& x) {
    const int64_t low = x.low(b), width = std::max<int64_t>(0, x.high(b) - low), rows = stop - start;
    std::vector<char> all(rows * width);
    of_query.resize(rows);
    first = low + width, last = low;
    for (int64_t n = 0; n < rows; ++n) {
      char* row = all.data() + n * width;
      mark(x, start + n, low, width, row);
      const char *begin = row, *end = row + width, *from = std::find(begin, end, 1);
      while (end != from && !end[-1]) --end;
      const bool whole = std::find(from, end, 0) == end;
      of_query[n] = {low + (from - begin), low + (end - begin), whole};
      if (from == end) continue;
      first = std::min(first, of_query[n].from), last = std::max(last, of_query[n].to);
    }
    if (empty()) return;
    visible.resize(rows * columns());
    for (int64_t n = 0; n < rows; ++n) {
      std::copy_n(all.data() + n * width + first - low, columns(), visible.data() + n * columns());
      of_query[n].from = std::clamp<int64_t>(of_query[n].from - first, 0, columns());
      of_query[n].to = std::clamp<int64_t>(of_query[n].to - first, of_query[n].from, columns());
    }
  }

  // row[j] = 1 where query i sees key low + j. The loops over keys have no branches, so that they are vectorised.
  void mark(const Attention<T>& x, int64_t i, int64_t low, int64_t width, char* row) const {
    const int64_t from = std::clamp<int64_t>(x.first(b, i) - low, 0, width);
    const int64_t to = std::clamp<int64_t>(x.last(b, i) - low, from, width);
    std::fill(row + from, row + to, 1);
    if (x.blocks) {
      const int64_t *ids = x.blocks + b * x.keys, id = ids[x.at(i)];
      for (int64_t j = 0; j < (id >= 0 ? width : 0); ++j) row[j] |= char(ids[low + j] == id);
    }
    if (x.segments) {
      const int64_t *ids = x.segments + b * x.keys, id = ids[x.at(i)];
      for (int64_t j = 0; j < width; ++j) row[j] &= char(ids[low + j] == id);
    }
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
