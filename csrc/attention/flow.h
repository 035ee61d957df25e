// Flow between groups alone. The rows that are requested are gathered, so that one prediction row costs one row.
#pragma once

#include "groups.h"
#include "../common/rows.h"

namespace symground {

// rows of x, one head, gathered into a matrix.
template <class T>
Matrix<T> gathered(const Matrix<T>& x, const int32_t* rows, int64_t count, T* out) {
  for (int64_t n = 0; n < count; ++n) {
    const T* row = x.data + rows[n] * x.row_stride;
    for (int64_t d = 0; d < x.columns; ++d) out[n * x.columns + d] = row[d * x.column_stride];
  }
  return {out, count, x.columns, x.columns, 1};
}

// Adds to the sums of each example and head; the thread that processes both owns these sums.
template <class T>
void run_flow(const Attention<T>& x, const Groups<T>& groups) {
  const QueryOrder order(x, groups, false);
  std::vector<int64_t> open;  // examples and heads with something to sum
  for (int64_t task = 0; task < x.batch * x.heads; ++task) {
    if (x.open(task / x.heads, task % x.heads) && order.tiles(task / x.heads)) open.push_back(task);
  }
  const int64_t workers = threads(), area = x.tile_numbers(), most = std::min(kTile, x.queries);
  const Shares<T> scratch(workers, 2 * area + most * (x.q.size + x.grad_out.size));
  std::vector<GroupSums<T>> sums(workers, GroupSums<T>(groups, x.keys));
  for_each_task(open.size(), [&](int64_t task, int64_t worker) {
    const int64_t b = open[task] / x.heads, h = open[task] % x.heads;
    T *s = scratch.of(worker), *dp = s + area, *q_rows = dp + area, *grad_rows = q_rows + most * x.q.size;
    for (int64_t index = 0; index < order.tiles(b); ++index) {
      const auto [queries, end] = order.tile(b, index);
      const int64_t rows = end - queries;
      const auto [low, high] = std::minmax_element(queries, end);
      const Tile<T> tile(x, b, *low, *high + 1);
      if (tile.empty()) continue;
      products(x, tile, h, gathered(x.q(b, h, 0, x.queries), queries, rows, q_rows),
               gathered(x.grad_out(b, h, 0, x.queries), queries, rows, grad_rows), s, dp);
      sums[worker].tile(x, tile, h, queries, rows, [&, queries = queries](int64_t n, T* column) {
        const auto [from, to] = tile.seen(x, queries[n]);
        const int64_t at = n * tile.columns() + from;
        const T level = x.lse_of(b, h, queries[n]);
        tile.logits(x, h, queries[n], s + n * tile.columns(), from, to, nullptr);
        magnitude_row(s + at, dp + at, column + from, to - from, x.row_scale(), level, x.beside(h, level),
                      x.gate_of(b, h));
      });
    }
  });
}

}  // namespace symground
