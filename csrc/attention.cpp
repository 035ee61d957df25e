// Saliency of softmax attention on a CPU, alone or together with the gradients of q, k and v.
//
// A thread takes a tile of queries against all the keys they see, one head after the other: products by torch's own
// matrix multiplication (which runs on one thread inside a parallel region), the rest by the loops of rows.cpp while
// the tile is in the cache. Nothing is shared that two threads write, so results do not depend on timing.

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "rows.h"

namespace symground {
namespace {

using torch::stable::Tensor;

constexpr int64_t kTile = 128;  // queries

// A strided matrix that owns nothing.
template <class T>
struct Matrix {
  T* data;
  int64_t rows, columns, row_stride, column_stride;

  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }

  Tensor tensor() const {
    const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
    AtenTensorHandle handle = nullptr;
    const auto dtype = std::is_same_v<T, float> ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64();
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
        data, 2, sizes, strides, 0, dtype, aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  }
};

// out = alpha · x y, added to out where `add`.
template <class T>
void multiply(const Matrix<T>& out, const Matrix<T>& x, const Matrix<T>& y, T alpha, bool add) {
  const Tensor result = out.tensor(), left = x.tensor(), right = y.tensor();
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), add ? 1.0 : 0.0, alpha));
}

// [B,H,T,D] of any strides.
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
      const std::optional<Tensor>& gate_, bool causal_, double scale_, const std::optional<Tensor>& key_range_,
      std::optional<int64_t> window_)
      : q(q_), k(k_), v(v_), grad_out(grad_out_),
        lse(static_cast<const T*>(lse_.data_ptr())),
        gate(gate_ ? static_cast<const T*>(gate_->data_ptr()) : nullptr),
        key_range(key_range_ ? static_cast<const int64_t*>(key_range_->data_ptr()) : nullptr),
        batch(q_.size(0)), heads(q_.size(1)), key_heads(k_.size(1)), queries(q_.size(2)), keys(k_.size(2)),
        window(window_.value_or(0)), causal(causal_), scale(T(scale_)) {}

  int64_t tiles() const { return (queries + kTile - 1) / kTile; }
  // Each thread's share of memory: the products q kᵀ and dO vᵀ of a tile, and what a tile adds to the total.
  int64_t tile_numbers() const { return std::min(kTile, queries) * keys; }
  T gate_of(int64_t b, int64_t h) const { return gate ? gate[b * heads + h] : T(1); }

  // The keys [first, last) that query i of example b sees.
  int64_t first(int64_t b, int64_t i) const {
    const int64_t low = key_range ? key_range[2 * b] : 0;
    return window ? std::max(low, i + keys - queries - window + 1) : low;
  }
  int64_t last(int64_t b, int64_t i) const {
    const int64_t high = key_range ? key_range[2 * b + 1] : keys;
    return causal ? std::min(high, i + keys - queries + 1) : high;
  }
};

// A tile of queries of one example and the keys that they see together.
template <class T>
struct Tile {
  int64_t b, start, stop, first, last;

  Tile(const Attention<T>& x, int64_t b_, int64_t index)
      : b(b_), start(index * kTile), stop(std::min(start + kTile, x.queries)),
        first(x.first(b, start)), last(x.last(b, stop - 1)) {}

  bool empty() const { return first >= last; }
  int64_t columns() const { return last - first; }
  Matrix<T> matrix(T* data) const { return {data, stop - start, columns(), columns(), 1}; }
};

// Adds the tile's saliency of one head to total (its corner at the tile's first query and key; may be null); with
// `gradients`, s becomes A and dp becomes ∂L/∂s, before the scale.
template <class T>
void head_of_tile(
    const Attention<T>& x, const Tile<T>& tile, int64_t h, T* s, T* dp, T* total, int64_t total_stride, bool gradients) {
  const int64_t key_head = h / (x.heads / x.key_heads);
  multiply(tile.matrix(s), x.q(tile.b, h, tile.start, tile.stop),
           x.k(tile.b, key_head, tile.first, tile.last).transposed(), T(1), false);
  multiply(tile.matrix(dp), x.grad_out(tile.b, h, tile.start, tile.stop),
           x.v(tile.b, key_head, tile.first, tile.last).transposed(), T(1), false);
  const T* lse = x.lse + (tile.b * x.heads + h) * x.queries;
  for (int64_t i = tile.start; i < tile.stop; ++i) {
    const int64_t width = tile.columns(), row = i - tile.start;
    const int64_t from = std::clamp<int64_t>(x.first(tile.b, i) - tile.first, 0, width);
    const int64_t to = std::clamp<int64_t>(x.last(tile.b, i) - tile.first, from, width);
    T *s_row = s + row * width, *dp_row = dp + row * width, *total_row = total ? total + row * total_stride : nullptr;
    if (!gradients) {
      saliency_row(s_row + from, dp_row + from, total_row + from, to - from, x.scale, lse[i], x.gate_of(tile.b, h));
      continue;
    }
    gradient_row(s_row + from, dp_row + from, total_row ? total_row + from : nullptr, to - from, x.scale, lse[i],
                 x.gate_of(tile.b, h));
    for (T* outside : {s_row, dp_row}) {
      std::fill(outside, outside + from, T(0));
      std::fill(outside + to, outside + width, T(0));
    }
  }
}

// The gradients that one tile adds, for the query heads of some key heads; dk and dv of those belong to this thread.
template <class T>
void backward_of_tile(
    const Attention<T>& x, const Tile<T>& tile, int64_t from_head, int64_t to_head, T* scratch, const Heads<T>& dq,
    const Heads<T>& dk, const Heads<T>& dv, T* total, int64_t total_stride) {
  const int64_t group = x.heads / x.key_heads;
  T *s = scratch, *dp = scratch + x.tile_numbers();
  for (int64_t h = from_head * group; h < to_head * group; ++h) {
    const T gate = x.gate_of(tile.b, h);
    if (gate == T(0)) continue;
    head_of_tile(x, tile, h, s, dp, total, total_stride, true);
    const auto p = tile.matrix(s), ds = tile.matrix(dp);
    multiply(dv(tile.b, h / group, tile.first, tile.last), p.transposed(),
             x.grad_out(tile.b, h, tile.start, tile.stop), gate, true);
    multiply(dq(tile.b, h, tile.start, tile.stop), ds, x.k(tile.b, h / group, tile.first, tile.last), x.scale, false);
    multiply(dk(tile.b, h / group, tile.first, tile.last), ds.transposed(), x.q(tile.b, h, tile.start, tile.stop),
             x.scale, true);
  }
}

int64_t threads() { return torch::stable::get_num_threads(); }

int64_t thread() {
  uint32_t index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&index));
  return index;
}

template <class T>
void run_saliency(const Attention<T>& x, T* total) {
  const int64_t tiles = x.tiles(), share = 2 * x.tile_numbers();
  const std::unique_ptr<T[]> scratch(new T[threads() * share]);
  torch::stable::parallel_for(0, x.batch * tiles, 1, [&](int64_t begin, int64_t end) {
    T *s = scratch.get() + thread() * share, *dp = s + x.tile_numbers();
    for (int64_t task = begin; task < end; ++task) {
      // From both ends in turn: late queries see more keys, and a thread's tasks are neighbours.
      const int64_t b = task / tiles, step = task % tiles;
      const Tile<T> tile(x, b, step % 2 ? tiles - 1 - step / 2 : step / 2);
      if (tile.empty()) continue;
      T* corner = total + (b * x.queries + tile.start) * x.keys + tile.first;
      for (int64_t h = 0; h < x.heads; ++h) {
        if (x.gate_of(b, h) != T(0)) head_of_tile(x, tile, h, s, dp, corner, x.keys, false);
      }
    }
  });
}

template <class T>
void run_backward(const Attention<T>& x, const Heads<T>& dq, const Heads<T>& dk, const Heads<T>& dv, T* total) {
  const int64_t tiles = x.tiles(), workers = threads(), area = x.tile_numbers(), share = 3 * area;
  const std::unique_ptr<T[]> scratch(new T[workers * share]);
  const auto corner = [&](const Tile<T>& tile) {
    return total ? total + (tile.b * x.queries + tile.start) * x.keys + tile.first : nullptr;
  };
  if (x.batch % workers == 0 || x.batch >= 4 * workers) {  // whole examples: the threads never wait for each other
    torch::stable::parallel_for(0, x.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        for (int64_t index = 0; index < tiles; ++index) {
          const Tile<T> tile(x, b, index);
          if (tile.empty()) continue;
          T* mine = scratch.get() + thread() * share;
          backward_of_tile(x, tile, 0, x.key_heads, mine, dq, dk, dv, corner(tile), x.keys);
        }
      }
    });
    return;
  }
  // Few examples: the heads of a tile are shared out, and what each thread adds to the total is summed afterwards.
  std::vector<char> wrote(workers);
  for (int64_t b = 0; b < x.batch; ++b) {
    for (int64_t index = 0; index < tiles; ++index) {
      const Tile<T> tile(x, b, index);
      if (tile.empty()) continue;
      std::fill(wrote.begin(), wrote.end(), 0);
      const int64_t rows = tile.stop - tile.start, columns = tile.columns();
      torch::stable::parallel_for(0, x.key_heads, 1, [&](int64_t begin, int64_t end) {
        T *mine = scratch.get() + thread() * share, *part = mine + 2 * area;
        if (!total) return backward_of_tile<T>(x, tile, begin, end, mine, dq, dk, dv, nullptr, 0);
        std::fill(part, part + rows * columns, T(0));
        backward_of_tile(x, tile, begin, end, mine, dq, dk, dv, part, columns);
        wrote[thread()] = 1;
      });
      if (!total) continue;
      torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t worker = 0; worker < workers; ++worker) {
          if (!wrote[worker]) continue;
          const T* part = scratch.get() + worker * share + 2 * area;
          for (int64_t i = begin; i < end; ++i) {
            for (int64_t j = 0; j < columns; ++j) corner(tile)[i * x.keys + j] += part[i * columns + j];
          }
        }
      });
    }
  }
}

using OptionalTensor = std::optional<Tensor>;

bool is_double(const Tensor& lse) { return lse.scalar_type() == torch::headeronly::ScalarType::Double; }

void attention_saliency(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out, const Tensor& lse,
    const OptionalTensor& gate, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, const Tensor& total) {
  const auto run = [&]<class T>(T) {
    run_saliency(Attention<T>(q, k, v, grad_out, lse, gate, causal, scale, key_range, window),
                 static_cast<T*>(total.data_ptr()));
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void attention_backward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out, const Tensor& lse,
    const OptionalTensor& gate, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, const Tensor& dq, const Tensor& dk, const Tensor& dv, const OptionalTensor& total) {
  const auto run = [&]<class T>(T) {
    run_backward(Attention<T>(q, k, v, grad_out, lse, gate, causal, scale, key_range, window), Heads<T>(dq),
                 Heads<T>(dk), Heads<T>(dv), total ? static_cast<T*>(total->data_ptr()) : nullptr);
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

// The number that symground/ops/_build.py gives; _extension.py calls no build of another one.
int64_t version() { return SYMGROUND_VERSION; }

}  // namespace
}  // namespace symground

// All of one dtype, float32 or float64; lse, gate, key_range (int64) and total contiguous. What they add to is zeroed
// by the caller: total, dq (rows and heads without a gradient are not written), dk, dv.
STABLE_TORCH_LIBRARY_FRAGMENT(symground_C, m) {
  m.def("version() -> int");
  m.def(
      "attention_saliency(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, Tensor? gate, bool causal, "
      "float scale, Tensor? key_range, int? window, Tensor(a!) total) -> ()");
  m.def(
      "attention_backward(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, Tensor? gate, bool causal, "
      "float scale, Tensor? key_range, int? window, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!)? total) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(symground_C, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&symground::version));
}

STABLE_TORCH_LIBRARY_IMPL(symground_C, CPU, m) {
  m.impl("attention_saliency", TORCH_BOX(&symground::attention_saliency));
  m.impl("attention_backward", TORCH_BOX(&symground::attention_backward));
}
