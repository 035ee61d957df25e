// Attention where some heads have gate 0: for these only the log-sum-exp is computed, and their values are not read.
#pragma once

#include "attention.h"
#include "../common/rows.h"

namespace symground {

// Writes lse [B,H,T] where a query sees a key, and out, gated, where the head's gate is not 0 either.
template <class T>
void run_forward(const Attention<T>& x, const Heads<T>& out, T* lse) {
  const int64_t tiles = x.tiles();
  const Shares<T> scratch(threads(), x.tile_numbers());
  for_each_task(x.batch * tiles, [&](int64_t task, int64_t worker) {
    const Tile<T> tile(x, task / tiles, tiles - 1 - task % tiles);
    if (tile.empty()) return;
    for (int64_t h = 0; h < x.heads; ++h) {
      const auto p = tile.matrix(scratch.of(worker));
      scores(x, tile, h, x.q(tile.b, h, tile.start, tile.stop), p.data);
      for (int64_t i = tile.start; i < tile.stop; ++i) {
        const auto [from, to] = tile.seen(x, i);
        T* row = p.data + (i - tile.start) * p.columns;
        if (from < to) {
          tile.logits(x, h, i, row, from, to, nullptr);
          lse[(tile.b * x.heads + h) * x.queries + i] =
              softmax_row(row + from, to - from, x.row_scale(), x.sink_of(h), x.gate_of(tile.b, h));
        }
        if (!x.open(tile.b, h)) continue;
        std::fill(row, row + from, T(0));
        std::fill(row + to, row + p.columns, T(0));
      }
      if (!x.open(tile.b, h)) continue;
      multiply(out(tile.b, h, tile.start, tile.stop), p, x.v(tile.b, x.key_head(h), tile.first, tile.last), T(1),
               false);
    }
  });
}

}  // namespace symground
