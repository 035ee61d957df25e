// An operator's checks before it accesses its tensors by pointer; an error names the tensor. The package's own checks
// run earlier and say more; these also protect whoever calls an operator directly.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace symground {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

enum class Memory {
  any,  // any strides
  rows,  // contiguous in the last dimension
  contiguous
};

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return "float64";
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    default: return "another dtype";
  }
}

template <class Sizes>
std::string listed(const Sizes& sizes) {
  std::ostringstream out;
  for (const int64_t size : sizes) {
    out << (out.tellp() ? "," : "");
    size < 0 ? out << "any" : out << size;
  }
  return "[" + out.str() + "]";
}

// The tensors of one call: all on the device of the first, and all but ids of its dtype.
class Checked {
 public:
  Checked(const char* op, const Tensor& first)
      : op_(op), type_(first.scalar_type()), device_(first.get_device_index()) {}

  ScalarType type() const { return type_; }

  // A size of -1 matches any size.
  void operator()(
      const char* name, const Tensor& x, std::initializer_list<int64_t> sizes,
      Memory memory = Memory::contiguous) const {
    check(name, x, type_, sizes, memory);
  }

  void operator()(
      const char* name, const OptionalTensor& x, std::initializer_list<int64_t> sizes,
      Memory memory = Memory::contiguous) const {
    if (x) check(name, *x, type_, sizes, memory);
  }

  // A tensor that is written must have memory for every number, so it must not be expanded.
  void written(const char* name, const Tensor& x, std::initializer_list<int64_t> sizes, Memory memory) const {
    check(name, x, type_, sizes, memory);
    const auto found = x.sizes(), strides = x.strides();
    bool apart = true;
    for (size_t i = 0; i < found.size(); ++i) apart = apart && (found[i] <= 1 || strides[i] != 0);
    that(apart, name, ": expected memory for every number, got an expanded tensor");
  }

  void ids(const char* name, const OptionalTensor& x, ScalarType type, std::initializer_list<int64_t> sizes) const {
    if (x) check(name, *x, type, sizes, Memory::contiguous);
  }

  bool on_device(const Tensor& x) const { return x.get_device_index() == device_; }

  template <class... Parts>
  void that(bool holds, const Parts&... parts) const {
    require(holds, op_, ": ", parts...);
  }

  // float32 or float64: the loops are compiled for these.
  void computes() const {
    const bool wide = type_ == ScalarType::Float || type_ == ScalarType::Double;
    that(wide, "expected float32 or float64, got ", name_of(type_));
  }

 private:
  void check(
      const char* name, const Tensor& x, ScalarType type, std::initializer_list<int64_t> sizes, Memory memory) const {
    const auto found = x.sizes();
    bool fits = found.size() == sizes.size() && x.scalar_type() == type && on_device(x);
    for (size_t i = 0; fits && i < sizes.size(); ++i) fits = sizes.begin()[i] < 0 || sizes.begin()[i] == found[i];
    if (!fits) {
      that(false, name, ": expected ", name_of(type), " ", listed(sizes), " on the device of the first tensor, got ",
           name_of(x.scalar_type()), " ", listed(found));
    }
    if (memory == Memory::contiguous) that(x.is_contiguous(), name, ": expected a contiguous tensor");
    if (memory == Memory::rows) {
      that(adjacent(x), name, ": expected a contiguous last dimension");
    }
  }

  static bool adjacent(const Tensor& x) {
    const auto sizes = x.sizes();
    return sizes.back() <= 1 || x.numel() == 0 || x.strides().back() == 1;
  }

  const char* op_;
  ScalarType type_;
  int32_t device_;  // the device's index (-1 for the CPU); all tensors of an operator are on the same kind of device
};

}  // namespace symground
