// Small matrices in a thread's own memory, and the loop that gives tasks to threads.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace symground {

using torch::stable::Tensor;

// A strided view of a matrix.
template <class T>
struct Matrix {
  T* data;
  int64_t rows, columns, row_stride, column_stride;

  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }

  Tensor tensor() const {
    const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
    AtenTensorHandle handle = nullptr;
    const auto dtype = std::is_same_v<T, float> ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64();
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
        data, 2, sizes, strides, 0, dtype, aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  }
};

// out = alpha · x y, added to out if `add`. Runs on one thread inside a parallel region.
template <class T>
void multiply(const Matrix<T>& out, const Matrix<T>& x, const Matrix<T>& y, T alpha, bool add) {
  const Tensor result = out.tensor(), left = x.tensor(), right = y.tensor();
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), add ? 1.0 : 0.0, alpha));
}

inline int64_t threads() { return torch::stable::get_num_threads(); }

inline int64_t thread() {
  uint32_t index = 0;
  TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&index));
  return index;
}

// While it lives, results of its thread that would be subnormal are 0. Such numbers are lost in every sum of weights, and
// take some processors a hundred times as long.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  FlushSubnormals() {}
#endif
};

// Calls work(task, worker) for every task; a thread that finishes takes the next one. Which thread takes a task differs
// between runs, so a result must depend only on its task.
template <class Work>
void for_each_task(int64_t tasks, const Work& work) {
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, std::min(tasks, threads()), 1, [&](int64_t worker, int64_t) {
    const FlushSubnormals flush;
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) work(task, worker);
  });
}

// Uninitialised memory for each thread. Every share begins at a cache line, because the rounding of a matrix product
// may depend on its operands' alignment but must not depend on the thread.
template <class T>
class Shares {
 public:
  Shares(int64_t workers, int64_t numbers)
      : share_((numbers + kLine - 1) / kLine * kLine),
        data_(static_cast<T*>(::operator new(sizeof(T) * workers * share_, kAlignment))) {}

  T* of(int64_t worker) const { return data_.get() + worker * share_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr int64_t kLine = 64 / sizeof(T);
  struct Delete {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  int64_t share_;
  std::unique_ptr<T, Delete> data_;
};

}  // namespace symground
