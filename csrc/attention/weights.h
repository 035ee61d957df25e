// What is read off attention weights A, and the gradients through it: symground/ops/attention/weights.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "../common/rows.h"

namespace symground {

// Groups of queries and keys. Without ids, all queries are one group.
struct WeightGroups {
  const int32_t *of_query, *of_key;  // [B,T] or null, and [B,S] or null; those outside of the numbers are in no group
  int64_t queries, keys;  // the numbers of groups

  // The group of query i, or -1.
  template <class T>
  int64_t of(const Attention<T>& x, int64_t b, int64_t i) const {
    const int64_t id = of_query ? of_query[b * x.queries + i] : 0;
    return id >= 0 && id < queries ? id : -1;
  }
};

// The results; each may be null.
template <class T>
struct Weights {
  WeightGroups groups;
  T *mass, *received;  // [B,H,Gq,Gk], [B,H,Gq,S]
  T *entropy, *weight, *score, *distance;  // [B,H,T], all or none
  int64_t* key;  // [B,H,T]
  T* pooled;  // [B,H,⌈T/block⌉,⌈S/block⌉]
  int64_t block;
  bool largest;

  bool grouped() const { return mass || received; }
  bool of_every_query() const { return entropy || pooled; }
};

// Sums or maxima of a row's weights p, of n keys from position `first` on, over blocks of keys.
template <class T>
void pool_row(const T* p, int64_t n, int64_t first, T factor, int64_t block, bool largest, T* pooled) {
  for (int64_t j = 0; j < n;) {
    const int64_t at = (first + j) / block, stop = std::min(n, (at + 1) * block - first);
    T sum = 0, most = 0;
    for (; j < stop; ++j) sum += p[j], most = std::max(most, p[j]);
    pooled[at] = largest ? std::max(pooled[at], factor * most) : pooled[at] + factor * sum;
  }
}

// Writes the results, of which mass, received and pooled are 0 before. A thread owns the heads that it processes.
template <class T>
void run_weights(const Attention<T>& x, const Weights<T>& y) {
  const int64_t area = x.tile_numbers(), sums = y.mass && !y.received ? y.groups.queries * x.keys : 0;
  const Shares<T> scratch(threads(), area + x.keys + sums);
  for_each_task(x.batch * x.heads, [&](int64_t task, int64_t worker) {
    const int64_t b = task / x.heads, h = task % x.heads;
    T *s = scratch.of(worker), *p = s + area, *mine = p + x.keys;
    T* received = y.received ? y.received + task * y.groups.queries * x.keys : y.mass ? mine : nullptr;
    std::fill_n(mine, sums, T(0));
    for (int64_t index = 0; index < x.tiles(); ++index) {
      const Tile<T> tile(x, b, index);
      bool wanted = y.of_every_query();
      for (int64_t i = tile.start; i < tile.stop && !wanted; ++i) wanted = y.groups.of(x, b, i) >= 0;
      if (tile.empty() || !wanted) continue;
      scores(x, tile, h, x.q(b, h, tile.start, tile.stop), s);
      for (int64_t i = tile.start; i < tile.stop; ++i) {
        const auto [from, to] = tile.seen(x, i);
        const int64_t group = received ? y.groups.of(x, b, i) : -1;
        if (from == to || (group < 0 && !y.of_every_query())) continue;
        T* row = s + (i - tile.start) * tile.columns();
        tile.logits(x, h, i, row, from, to, nullptr);
        row += from;
        const int64_t n = to - from, first = tile.first + from, at = task * x.queries + i;
        const T level = x.lse_of(b, h, i);
        RowSummary<T> found;
        const T factor = weights_row(row, p, n, x.row_scale(), level, x.beside(h, level), T(x.at(i) - first),
                                     y.entropy ? &found : nullptr);
        if (group >= 0) add_row(p, received + group * x.keys + first, n, factor);
        if (y.pooled) {
          const int64_t high = (x.queries + y.block - 1) / y.block, wide = (x.keys + y.block - 1) / y.block;
          pool_row(p, n, first, factor, y.block, y.largest, y.pooled + (task * high + i / y.block) * wide);
        }
        if (!y.entropy) continue;
        const int64_t key = find_row(row, n, x.row_scale(), found.score);
        if (key == n) continue;  // ids hide all keys of the row
        y.entropy[at] = found.entropy, y.distance[at] = found.distance, y.score[at] = found.score;
        y.weight[at] = factor * p[key], y.key[at] = first + key;
      }
    }
    if (!y.mass) return;
    std::vector<double> slots(y.groups.keys);
    const int32_t* of_key = y.groups.of_key + b * x.keys;
    for (int64_t group = 0; group < y.groups.queries; ++group) {
      std::fill(slots.begin(), slots.end(), 0.0);
      for (int64_t j = 0; j < x.keys; ++j) {
        if (of_key[j] >= 0 && of_key[j] < y.groups.keys) slots[of_key[j]] += received[group * x.keys + j];
      }
      std::copy(slots.begin(), slots.end(), y.mass + (task * y.groups.queries + group) * y.groups.keys);
    }
  });
}

// The gradients of mass, received and entropy, each of which may be null, and where those of q, k, a sink and slopes
// are added; the last two may be null.
template <class T>
struct WeightsBackward {
  WeightGroups groups;
  const T *mass, *received, *entropy;
  Heads<T> dq, dk;
  T *dsink, *dslopes;  // [B,H]
};

// A thread owns the key heads that it processes.
template <class T>
void run_weights_backward(const Attention<T>& x, const WeightsBackward<T>& y) {
  const bool bent = x.softcap != T(0), grouped = y.mass || y.received;
  const int64_t area = x.tile_numbers(), share = x.heads / x.key_heads, table = y.groups.queries * x.keys;
  const Shares<T> scratch(threads(), (2 + bent) * area + grouped * table);
  for_each_task(x.batch * x.key_heads, [&](int64_t task, int64_t worker) {
    const int64_t b = task / x.key_heads, key_head = task % x.key_heads;
    T *s = scratch.of(worker), *dp = s + area, *bend = bent ? dp + area : nullptr, *of_group = dp + (1 + bent) * area;
    for (int64_t h = key_head * share; h < (key_head + 1) * share; ++h) {
      const int64_t head = b * x.heads + h;
      if (grouped) {  // ∂L/∂A of every key, for each group of queries
        if (y.received) std::copy_n(y.received + head * table, table, of_group);
        else std::fill_n(of_group, table, T(0));
        for (int64_t n = 0; y.mass && n < y.groups.queries; ++n) {
          const T* mass = y.mass + (head * y.groups.queries + n) * y.groups.keys;
          for (int64_t j = 0; j < x.keys; ++j) {
            const int32_t id = y.groups.of_key[b * x.keys + j];
            if (id >= 0 && id < y.groups.keys) of_group[n * x.keys + j] += mass[id];
          }
        }
      }
      for (int64_t index = 0; index < x.tiles(); ++index) {
        const Tile<T> tile(x, b, index);
        bool wanted = y.entropy;
        for (int64_t i = tile.start; i < tile.stop && !wanted; ++i) wanted = y.groups.of(x, b, i) >= 0;
        if (tile.empty() || !wanted) continue;
        scores(x, tile, h, x.q(b, h, tile.start, tile.stop), s);
        for (int64_t i = tile.start; i < tile.stop; ++i) {
          const auto [from, to] = tile.seen(x, i);
          const int64_t offset = (i - tile.start) * tile.columns(), n = to - from;
          const int64_t group = grouped ? y.groups.of(x, b, i) : -1;
          std::fill_n(dp + offset, tile.columns(), T(0));
          if (from == to || (group < 0 && !y.entropy)) continue;
          T *row = s + offset, *grad = dp + offset;
          tile.logits(x, h, i, row, from, to, bend ? bend + offset : nullptr);
          const T level = x.lse_of(b, h, i), beside = x.beside(h, level);
          const T* of_key = group < 0 ? nullptr : of_group + group * x.keys + tile.first + from;
          const T sum = weights_gradient_row(row + from, of_key, grad + from, n, x.row_scale(), level, beside,
                                             y.entropy ? y.entropy[head * x.queries + i] : T(0));
          if (y.dsink) y.dsink[head] -= beside * sum;
          for (int64_t j = from; y.dslopes && j < to; ++j) y.dslopes[head] += grad[j] * T(tile.first + j - x.at(i));
          for (int64_t j = from; bend && j < to; ++j) grad[j] *= bend[offset + j];
        }
        const auto ds = tile.matrix(dp);
        multiply(y.dq(b, h, tile.start, tile.stop), ds, x.k(b, key_head, tile.first, tile.last), x.scale, false);
        multiply(y.dk(b, key_head, tile.first, tile.last), ds.transposed(), x.q(b, h, tile.start, tile.stop), x.scale,
                 true);
      }
    }
  });
}

}  // namespace symground
