// Saliency alone.
#pragma once

#include "attention.h"
#include "../common/rows.h"

namespace symground {

// Adds Σ_h S_h to total [B,T,S]. A thread owns the tiles of queries that it processes, for all heads.
template <class T>
void run_saliency(const Attention<T>& x, T* total) {
  const int64_t tiles = x.tiles(), area = x.tile_numbers();
  const Shares<T> scratch(threads(), 2 * area);
  for_each_task(x.batch * tiles, [&](int64_t task, int64_t worker) {
    // The last queries first: they see the most keys, and all threads should finish together.
    const Tile<T> tile(x, task / tiles, tiles - 1 - task % tiles);
    if (tile.empty()) return;
    T *s = scratch.of(worker), *dp = s + area;
    T* corner = total + (tile.b * x.queries + tile.start) * x.keys + tile.first;
    for (int64_t h = 0; h < x.heads; ++h) {
      if (!x.open(tile.b, h)) continue;
      products(x, tile, h, s, dp);
      for (int64_t i = tile.start; i < tile.stop; ++i) {
        const auto [from, to] = tile.seen(x, i);
        const int64_t row = i - tile.start, at = row * tile.columns() + from;
        const T level = x.lse_of(tile.b, h, i);
        tile.logits(x, h, i, s + row * tile.columns(), from, to, nullptr);
        saliency_row(s + at, dp + at, corner + row * x.keys + from, to - from, x.row_scale(), level,
                     x.beside(h, level), x.gate_of(tile.b, h));
      }
    }
  });
}

}  // namespace symground
