// gate · x + (1 − gate) · fill, head by head: the arguments of the CPU's loops (gate.cpp) and of the GPU's
// kernel (gate.cu).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <type_traits>

#include "../common/checks.h"

namespace symground {

// The type that T is computed in, and the type of its gates. Half precision is rounded once, at the end.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Strides of a tensor that is broadcast to [M,B,T,H,D]; 0 along broadcast dimensions, so nothing is expanded in memory.
struct Strides {
  int64_t m, b, t, h, d;
};

// The tensor's dimensions are the last ones of `names`; the others, and those of size 1, have stride 0.
inline Strides strides_of(const torch::stable::Tensor& x, const char* names) {
  Strides found{};
  const char* last = names + std::char_traits<char>::length(names);
  for (int64_t i = x.dim(); i-- > 0;) {
    const int64_t stride = x.size(i) == 1 ? 0 : x.stride(i);
    switch (*--last) {
      case 'm': found.m = stride; break;
      case 'b': found.b = stride; break;
      case 't': found.t = stride; break;
      case 'h': found.h = stride; break;
      default: found.d = stride;
    }
  }
  return found;
}

// out [M,B,T,H,D] is contiguous; x has contiguous rows; fill has contiguous rows too, or one number for each row.
template <class T>
struct Gate {
  const T* x;
  const Wide<T>* gate;
  const T* fill;  // null is 0
  T* out;
  int64_t M, B, T_, H, D;
  Strides x_at, gate_at, fill_at;

  Gate(const torch::stable::Tensor& x_, const torch::stable::Tensor& gate_,
       const std::optional<torch::stable::Tensor>& fill_, const torch::stable::Tensor& out_)
      : x(static_cast<const T*>(x_.data_ptr())), gate(static_cast<const Wide<T>*>(gate_.data_ptr())),
        fill(fill_ ? static_cast<const T*>(fill_->data_ptr()) : nullptr), out(static_cast<T*>(out_.data_ptr())),
        M(gate_.dim() == 3 ? gate_.size(0) : 1), B(x_.size(0)), T_(x_.size(1)), H(x_.size(2)), D(x_.size(3)),
        x_at(strides_of(x_, "bthd")), gate_at(strides_of(gate_, "mbh")),
        fill_at(fill_ ? strides_of(*fill_, "mbthd") : Strides{}) {}
};

// Whether x broadcasts to the last of `sizes`, as `strides_of` reads it.
inline bool broadcasts(const torch::stable::Tensor& x, std::initializer_list<int64_t> sizes) {
  const int64_t absent = int64_t(sizes.size()) - x.dim();
  bool fits = absent >= 0;
  for (int64_t i = 0; fits && i < x.dim(); ++i) fits = x.size(i) == 1 || x.size(i) == sizes.begin()[absent + i];
  return fits;
}

inline void check_gate(
    const torch::stable::Tensor& x, const torch::stable::Tensor& gate, const std::optional<torch::stable::Tensor>& fill,
    const torch::stable::Tensor& out) {
  const Checked check("gate_heads", x);
  check("x", x, {-1, -1, -1, -1}, Memory::rows);
  const int64_t masks = gate.dim() == 3 ? gate.size(0) : 1, B = x.size(0), T = x.size(1), H = x.size(2), D = x.size(3);
  const auto wide = check.type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check.that(gate.scalar_type() == wide, "gate: expected ", name_of(wide), ", got ", name_of(gate.scalar_type()));
  if (gate.dim() < 1 || !check.on_device(gate) || !broadcasts(gate, {masks, B, H})) {  // lists sizes only on failure
    check.that(false, "gate: expected [M,B,H] = ", listed(std::initializer_list<int64_t>{masks, B, H}),
               " or its last dimensions, on the device of x, got ", listed(gate.sizes()));
  }
  if (fill) {
    check.that(fill->scalar_type() == check.type(), "fill: expected ", name_of(check.type()), ", the dtype of x, got ",
               name_of(fill->scalar_type()));
    if (!check.on_device(*fill) || !broadcasts(*fill, {masks, B, T, H, D})) {
      check.that(false, "fill: expected a shape that broadcasts to [M,B,T,H,D] = ",
                 listed(std::initializer_list<int64_t>{masks, B, T, H, D}), ", on the device of x, got ",
                 listed(fill->sizes()));
    }
    const bool rows = fill->dim() == 0 || fill->sizes().back() <= 1 || fill->strides().back() <= 1;
    check.that(rows, "fill: expected a contiguous last dimension, or one number for all of it");
  }
  if (gate.dim() == 3) {
    check("out", out, {masks, B, T, H, D});
  } else {
    check("out", out, {B, T, H, D});
  }
}

// Calls run(Gate<T>) with the dtype of x; Half and Bfloat are the CPU's or the GPU's 16-bit types.
template <class Half, class Bfloat, class Run>
void with_gate(
    const torch::stable::Tensor& x, const torch::stable::Tensor& gate, const std::optional<torch::stable::Tensor>& fill,
    const torch::stable::Tensor& out, const Run& run) {
  check_gate(x, gate, fill, out);
  switch (x.scalar_type()) {
    case ScalarType::Double: return run(Gate<double>(x, gate, fill, out));
    case ScalarType::Float: return run(Gate<float>(x, gate, fill, out));
    case ScalarType::Half: return run(Gate<Half>(x, gate, fill, out));
    case ScalarType::BFloat16: return run(Gate<Bfloat>(x, gate, fill, out));
    default: require(false, "gate_heads: x: expected float64, float32, float16 or bfloat16");
  }
}

// Returns false, without writing out, if a gate is NaN. On a GPU the kernel asserts this instead, without a wait.
bool run_gate(
    const torch::stable::Tensor& x, const torch::stable::Tensor& gate, const std::optional<torch::stable::Tensor>& fill,
    const torch::stable::Tensor& out);

}  // namespace symground
