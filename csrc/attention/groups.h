// Sums of |S| over groups of queries and groups of keys.
//
// The rows of one query group are added first, key by key, so a number costs one vector addition whatever the groups
// are. The column sums of a tile are then summed by key group, once for each query group in the tile.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"

namespace symground {

template <class T>
struct Groups {
  const int32_t *of_query, *of_key;  // [B,T] and [B,S]; -1 is in no group
  int64_t query_groups, key_groups;
  T *flow, *row_total, *matrix_total;  // [B,H,Gq,Gk] and, each or null, [B,H,Gq], [B,H]; added to

  // Whether rows of this group count in the requested sums.
  bool wanted(int32_t group) const { return matrix_total || (group >= 0 && group < query_groups); }
};

// The queries of each example that count, by position; within a tile, by group.
class QueryOrder {
 public:
  template <class T>
  QueryOrder(const Attention<T>& x, const Groups<T>& groups, bool all) : begin_{0} {
    for (int64_t b = 0; b < x.batch; ++b) {
      const int32_t* group = groups.of_query + b * x.queries;
      for (int32_t i = 0; i < x.queries; ++i) {
        if (all || groups.wanted(group[i])) queries_.push_back(i);
      }
      begin_.push_back(queries_.size());
      for (int64_t index = 0; index < tiles(b); ++index) {
        const auto [first, last] = tile(b, index);
        std::sort(first, last, [&](int32_t i, int32_t j) { return std::pair(group[i], i) < std::pair(group[j], j); });
      }
    }
  }

  int64_t tiles(int64_t b) const { return (begin_[b + 1] - begin_[b] + kTile - 1) / kTile; }
  std::pair<int32_t*, int32_t*> tile(int64_t b, int64_t index) {
    int32_t* first = queries_.data() + begin_[b] + index * kTile;
    return {first, std::min(first + kTile, queries_.data() + begin_[b + 1])};
  }
  std::pair<const int32_t*, const int32_t*> tile(int64_t b, int64_t index) const {
    return const_cast<QueryOrder*>(this)->tile(b, index);
  }

 private:
  std::vector<int32_t> queries_;
  std::vector<int64_t> begin_;
};

// One thread's memory for the sums of a tile.
template <class T>
class GroupSums {
 public:
  GroupSums(const Groups<T>& groups, int64_t keys)
      : groups_(groups), column_(keys), slots_(kChains * (groups.key_groups + 1)) {}

  // Calls row(n, column) for the rows n = 0, 1, … of the tile. It must add its |S| to column, one number for each of
  // the tile's keys, unless column is null. Then adds the column sums of each query group to the results of head h.
  template <class Row>
  void tile(
      const Attention<T>& x, const Tile<T>& tile, int64_t h, const int32_t* queries, int64_t rows, const Row& row) {
    const int32_t* group = groups_.of_query + tile.b * x.queries;
    for (int64_t begin = 0, end = 0; begin < rows; begin = end) {
      const int32_t here = group[queries[begin]];
      const bool wanted = groups_.wanted(here);
      if (wanted) std::fill_n(column_.data(), tile.columns(), T(0));
      for (; end < rows && group[queries[end]] == here; ++end) row(end, wanted ? column_.data() : nullptr);
      if (wanted) add(x, tile, h, here);
    }
  }

 private:
  // Separate sums, since neighbouring keys are often in one group, and an addition waits for the
  // previous one at its address.
  static constexpr int64_t kChains = 4;

  void add(const Attention<T>& x, const Tile<T>& tile, int64_t h, int32_t query_group) {
    const int64_t count = groups_.key_groups, chunk = tile.columns() / kChains;
    const int32_t* of_key = groups_.of_key + tile.b * x.keys + tile.first;
    const T* column = column_.data();
    std::fill(slots_.begin(), slots_.end(), 0.0);
    // Slot `count` is for keys in no group: -1 is the largest unsigned number.
    const auto slot = [&](int64_t chain, int64_t j) -> double& {
      return slots_[chain * (count + 1) + std::min<uint32_t>(of_key[j], count)];
    };
    for (int64_t j = 0; j < chunk; ++j) {
      for (int64_t chain = 0; chain < kChains; ++chain) slot(chain, chain * chunk + j) += column[chain * chunk + j];
    }
    for (int64_t j = kChains * chunk; j < tile.columns(); ++j) slot(0, j) += column[j];
    const int64_t head = tile.b * x.heads + h, row = head * groups_.query_groups + query_group;
    const bool grouped = query_group >= 0 && query_group < groups_.query_groups;
    double total = 0;
    for (int64_t b = 0; b <= count; ++b) {
      double sum = 0;
      for (int64_t chain = 0; chain < kChains; ++chain) sum += slots_[chain * (count + 1) + b];
      total += sum;
      if (grouped && b < count) groups_.flow[row * count + b] += T(sum);
    }
    if (grouped && groups_.row_total) groups_.row_total[row] += T(total);
    if (groups_.matrix_total) groups_.matrix_total[head] += T(total);
  }

  Groups<T> groups_;
  std::vector<T> column_;      // [S]
  std::vector<double> slots_;  // [kChains,Gk+1]
};

}  // namespace symground
