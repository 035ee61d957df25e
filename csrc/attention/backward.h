// The gradients of q, k and v, with the saliency and the flow between groups computed in the same pass.
#pragma once

#include "groups.h"
#include "../common/rows.h"

namespace symground {

template <class T>
struct Backward {
  const Attention<T>& x;
  Heads<T> dq, dk, dv;
  T* total;  // [B,T,S] or null
  const Groups<T>* groups;  // or null
  const QueryOrder* order;  // of all queries, or null
  T* dslopes;  // [B,H] or null
};

// One thread's memory: the two products of a tile, the softcap's derivative (or null), its term of the total, and the
// sums by group.
template <class T>
struct BackwardScratch {
  T *s, *dp, *bend, *part;
  GroupSums<T>* sums;
};

// Adds the tile's saliency of one head to total (from the tile's first query and key; may be null) and its sums to the
// groups' (may be null). s becomes A, and dp becomes ∂L/∂s before the scale.
template <class T>
void head_of_tile(
    const Backward<T>& y, const Tile<T>& tile, int64_t index, int64_t h, const BackwardScratch<T>& mine, T* total,
    int64_t total_stride) {
  const Attention<T>& x = y.x;
  products(x, tile, h, mine.s, mine.dp);
  const auto row = [&](int64_t i, T* column) {
    const auto [from, to] = tile.seen(x, i);
    const int64_t width = tile.columns(), n = i - tile.start;
    T *s = mine.s + n * width, *dp = mine.dp + n * width, *bend = mine.bend ? mine.bend + n * width : nullptr;
    const T level = x.lse_of(tile.b, h, i);
    tile.logits(x, h, i, s, from, to, bend);
    gradient_row(s + from, dp + from, total ? total + n * total_stride + from : nullptr,
                 column ? column + from : nullptr, to - from, x.row_scale(), level, x.beside(h, level),
                 x.gate_of(tile.b, h));
    if (y.dslopes) {
      T sum = 0;
      for (int64_t j = from; j < to; ++j) sum += dp[j] * T(tile.first + j - x.at(i));
      y.dslopes[tile.b * x.heads + h] += sum;
    }
    if (bend) {
      for (int64_t j = from; j < to; ++j) dp[j] *= bend[j];
    }
    for (T* outside : {s, dp}) {
      std::fill(outside, outside + from, T(0));
      std::fill(outside + to, outside + width, T(0));
    }
  };
  if (!y.groups) {
    for (int64_t i = tile.start; i < tile.stop; ++i) row(i, nullptr);
    return;
  }
  const int32_t* queries = y.order->tile(tile.b, index).first;
  mine.sums->tile(x, tile, h, queries, tile.stop - tile.start, [&](int64_t n, T* column) { row(queries[n], column); });
}

// The terms of one tile, for the query heads of one key head whose gate is not 0. This thread owns their dk, dv and
// sums by group.
template <class T>
void backward_of_tile(
    const Backward<T>& y, const Tile<T>& tile, int64_t index, int64_t key_head, const BackwardScratch<T>& mine,
    T* total, int64_t total_stride) {
  const Attention<T>& x = y.x;
  const int64_t group = x.heads / x.key_heads;
  for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h) {
    if (!x.open(tile.b, h)) continue;
    head_of_tile(y, tile, index, h, mine, total, total_stride);
    const auto p = tile.matrix(mine.s), ds = tile.matrix(mine.dp);
    multiply(y.dv(tile.b, key_head, tile.first, tile.last), p.transposed(),
             x.grad_out(tile.b, h, tile.start, tile.stop), x.gate_of(tile.b, h), true);
    multiply(y.dq(tile.b, h, tile.start, tile.stop), ds, x.k(tile.b, key_head, tile.first, tile.last), x.scale, false);
    multiply(y.dk(tile.b, key_head, tile.first, tile.last), ds.transposed(), x.q(tile.b, h, tile.start, tile.stop),
             x.scale, true);
  }
}

template <class T>
T* corner(const Backward<T>& y, const Tile<T>& tile) {
  return y.total ? y.total + (tile.b * y.x.queries + tile.start) * y.x.keys + tile.first : nullptr;
}

// The heads of one example's tile are split over the threads, and their terms of the total are summed afterwards.
template <class T, class Mine>
void backward_by_heads(const Backward<T>& y, int64_t b, int64_t workers, const Mine& mine) {
  const Attention<T>& x = y.x;
  const int64_t group = x.heads / x.key_heads;
  std::vector<int64_t> open;  // key heads of which some query head has a gate other than 0
  for (int64_t h = 0; h < x.heads; ++h) {
    if (x.open(b, h) && (open.empty() || open.back() != h / group)) open.push_back(h / group);
  }
  std::vector<char> wrote(workers);
  for (int64_t index = 0; index < x.tiles(); ++index) {
    const Tile<T> tile(x, b, index);
    if (tile.empty()) continue;
    std::fill(wrote.begin(), wrote.end(), 0);
    const int64_t rows = tile.stop - tile.start, columns = tile.columns();
    torch::stable::parallel_for(0, open.size(), 1, [&](int64_t begin, int64_t end) {
      const FlushSubnormals flush;
      const BackwardScratch<T> scratch = mine(thread());
      if (y.total) std::fill_n(scratch.part, rows * columns, T(0));
      for (int64_t n = begin; n < end; ++n) {
        backward_of_tile(y, tile, index, open[n], scratch, y.total ? scratch.part : nullptr, columns);
      }
      wrote[thread()] = 1;
    });
    if (!y.total) continue;
    torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t worker = 0; worker < workers; ++worker) {
        if (!wrote[worker]) continue;
        const T* part = mine(worker).part;
        for (int64_t i = begin; i < end; ++i) {
          for (int64_t j = 0; j < columns; ++j) corner(y, tile)[i * x.keys + j] += part[i * columns + j];
        }
      }
    });
  }
}

template <class T>
void run_backward(const Backward<T>& y) {
  const Attention<T>& x = y.x;
  const int64_t workers = threads(), area = x.tile_numbers();
  const bool bent = x.softcap != T(0);
  const Shares<T> scratch(workers, (2 + bent + (y.total != nullptr)) * area);
  std::vector<GroupSums<T>> sums;
  if (y.groups) sums.assign(workers, GroupSums<T>(*y.groups, x.keys));
  const auto mine = [&](int64_t worker) {
    T* s = scratch.of(worker);
    T *bend = s + 2 * area, *part = bend + bent * area;
    return BackwardScratch<T>{s, s + area, bent ? bend : nullptr, part, y.groups ? &sums[worker] : nullptr};
  };
  if (x.batch % workers == 0 || x.batch >= 4 * workers) {  // whole examples: no thread waits for another
    for_each_task(x.batch, [&](int64_t b, int64_t worker) {
      for (int64_t index = 0; index < x.tiles(); ++index) {
        const Tile<T> tile(x, b, index);
        if (tile.empty()) continue;
        for (int64_t h = 0; h < x.key_heads; ++h) {
          backward_of_tile(y, tile, index, h, mine(worker), corner(y, tile), x.keys);
        }
      }
    });
    return;
  }
  for (int64_t b = 0; b < x.batch; ++b) backward_by_heads(y, b, workers, mine);
}

}  // namespace symground
