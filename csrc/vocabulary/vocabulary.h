// A tile of logits of a vocabulary head, processed row by row while it is in the cache.
#pragma once

#include "../common/matrix.h"
#include "../common/rows.h"

namespace symground {

// Calls work(row's numbers, their count, index) for every row of x [R,C]; the rows are contiguous.
template <class T, class Work>
void for_each_row(const Tensor& x, const Work& work) {
  T* data = static_cast<T*>(x.data_ptr());
  const int64_t columns = x.size(1), stride = x.stride(0);
  torch::stable::parallel_for(0, x.size(0), std::max<int64_t>(1, 65536 / std::max<int64_t>(1, columns)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) work(data + i * stride, columns, i);
                              });
}

// Updates top [R], the largest numbers so far, and total [R], sums of exponentials relative to top, with the rows of x.
template <class T>
void run_add_exponentials(const Tensor& x, T* top, T* total) {
  for_each_row<T>(x, [&](const T* row, int64_t n, int64_t i) { add_exponentials_row(row, n, top[i], total[i]); });
}

// x[i,j] becomes factor[i] · exp(x[i,j] − level[i]).
template <class T>
void run_scaled_exponentials(const Tensor& x, const T* level, const T* factor) {
  for_each_row<T>(x, [&](T* row, int64_t n, int64_t i) { scaled_exponentials_row(row, n, level[i], factor[i]); });
}

}  // namespace symground
