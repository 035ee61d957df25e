// The operators of symground_C: attention's saliency and flow on a CPU, alone or together with its gradients, and
// attention itself where heads have a gate; SSD and what stands around it in a Mamba-2 layer; gates alone; and the
// exponentials of a vocabulary's softmax. The operators of gate.cu are those of the same names on a GPU.
//
// A thread takes a tile of queries against all the keys they see, one head after the other: products by torch's own
// matrix multiplication (which runs on one thread inside a parallel region), the rest by the loops of rows.cpp while
// the tile is in the cache. Nothing is shared that two threads write, so results do not depend on timing. A head whose
// gate is 0 is passed over.

#include <torch/csrc/stable/library.h>

#include "attention.h"
#include "backward.h"
#include "convolution.h"
#include "flow.h"
#include "forward.h"
#include "gate.h"
#include "gated_norm.h"
#include "saliency.h"
#include "ssd.h"
#include "ssd_backward.h"
#include "vocabulary.h"

namespace symground {
namespace {

bool is_double(const Tensor& lse) { return lse.scalar_type() == torch::headeronly::ScalarType::Double; }

template <class T>
T* pointer(const OptionalTensor& x) {
  return x ? static_cast<T*>(x->data_ptr()) : nullptr;
}

template <class T>
Groups<T> groups_of(
    const OptionalTensor& query_groups, const OptionalTensor& key_groups, const Tensor& flow,
    const OptionalTensor& row_total, const OptionalTensor& matrix_total) {
  return {pointer<const int32_t>(query_groups), pointer<const int32_t>(key_groups), flow.size(2), flow.size(3),
          static_cast<T*>(flow.data_ptr()), pointer<T>(row_total), pointer<T>(matrix_total)};
}

void attention_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate, bool causal, double scale,
    const OptionalTensor& key_range, std::optional<int64_t> window, const Tensor& out, const Tensor& lse) {
  const auto run = [&]<class T>(T) {  // there is no gradient yet; out has its shape
    run_forward(Attention<T>(q, k, v, out, lse, gate, causal, scale, key_range, window), Heads<T>(out),
                pointer<T>(lse));
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void attention_saliency(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out, const Tensor& lse,
    const OptionalTensor& gate, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, const Tensor& total) {
  const auto run = [&]<class T>(T) {
    run_saliency(Attention<T>(q, k, v, grad_out, lse, gate, causal, scale, key_range, window), pointer<T>(total));
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void attention_flow(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out, const Tensor& lse,
    const OptionalTensor& gate, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, const Tensor& query_groups, const Tensor& key_groups, const Tensor& flow,
    const Tensor& row_total, const OptionalTensor& matrix_total) {
  const auto run = [&]<class T>(T) {
    run_flow(Attention<T>(q, k, v, grad_out, lse, gate, causal, scale, key_range, window),
             groups_of<T>(query_groups, key_groups, flow, row_total, matrix_total));
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void attention_backward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out, const Tensor& lse,
    const OptionalTensor& gate, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, const Tensor& dq, const Tensor& dk, const Tensor& dv, const OptionalTensor& total,
    const OptionalTensor& query_groups, const OptionalTensor& key_groups, const OptionalTensor& flow) {
  const auto run = [&]<class T>(T) {
    const Attention<T> x(q, k, v, grad_out, lse, gate, causal, scale, key_range, window);
    Backward<T> y{x, Heads<T>(dq), Heads<T>(dk), Heads<T>(dv), pointer<T>(total), nullptr, nullptr};
    if (!flow) return run_backward(y);
    const auto groups = groups_of<T>(query_groups, key_groups, *flow, std::nullopt, std::nullopt);
    const QueryOrder order(x, groups, true);
    y.groups = &groups;
    y.order = &order;
    run_backward(y);
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void ssd(
    const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& key_range, const OptionalTensor& initial_state, const Tensor& y, const Tensor& state) {
  const auto run = [&]<class T>(T) {
    run_ssd(SSD<T>(x, dt, A, B, C, key_range, initial_state), pointer<T>(y), pointer<T>(state));
  };
  is_double(x) ? run(0.0) : run(0.0f);
}

void ssd_backward(
    const Tensor& grad_y, const OptionalTensor& grad_state, const Tensor& x, const Tensor& dt, const Tensor& A,
    const Tensor& B, const Tensor& C, const OptionalTensor& key_range, const OptionalTensor& initial_state,
    const Tensor& dx, const Tensor& ddt, const Tensor& dA, const Tensor& dB, const Tensor& dC, const Tensor& dinitial) {
  const auto run = [&]<class T>(T) {
    run_ssd_backward(SSD<T>(x, dt, A, B, C, key_range, initial_state),
                     SSDGradients<T>{Rows<T>(grad_y), pointer<const T>(grad_state), Rows<T>(dx), pointer<T>(ddt),
                                     pointer<T>(dA), Rows<T>(dB), Rows<T>(dC), pointer<T>(dinitial)});
  };
  is_double(x) ? run(0.0) : run(0.0f);
}

void add_exponentials(const Tensor& x, const Tensor& top, const Tensor& total) {
  const auto run = [&]<class T>(T) {
    run_add_exponentials(x, static_cast<T*>(top.data_ptr()), static_cast<T*>(total.data_ptr()));
  };
  is_double(x) ? run(0.0) : run(0.0f);
}

void scaled_exponentials(const Tensor& x, const Tensor& level, const Tensor& factor) {
  const auto run = [&]<class T>(T) {
    run_scaled_exponentials<T>(x, static_cast<T*>(level.data_ptr()), static_cast<T*>(factor.data_ptr()));
  };
  is_double(x) ? run(0.0) : run(0.0f);
}

// The number that symground/ops/_build.py gives; _extension.py calls no build of another one.
int64_t version() { return SYMGROUND_VERSION; }

}  // namespace
}  // namespace symground

// All of one dtype, float32 or float64, but the groups (int32) and key_range (int64); contiguous, but q, k, v, grad_out
// and their gradients. What they add to is zeroed by the caller: total, flow, row_total, matrix_total, dq (rows and
// heads without a gradient are not written), dk, dv.
STABLE_TORCH_LIBRARY_FRAGMENT(symground_C, m) {
  m.def("version() -> int");
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor gate, bool causal, float scale, Tensor? key_range, "
      "int? window, Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def(
      "attention_saliency(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, Tensor? gate, bool causal, "
      "float scale, Tensor? key_range, int? window, Tensor(a!) total) -> ()");
  m.def(
      "attention_flow(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, Tensor? gate, bool causal, "
      "float scale, Tensor? key_range, int? window, Tensor query_groups, Tensor key_groups, Tensor(a!) flow, "
      "Tensor(b!) row_total, Tensor(c!)? matrix_total) -> ()");
  m.def(
      "attention_backward(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, Tensor? gate, bool causal, "
      "float scale, Tensor? key_range, int? window, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!)? total, "
      "Tensor? query_groups, Tensor? key_groups, Tensor(e!)? flow) -> ()");
  m.def("gate_heads(Tensor x, Tensor gate, Tensor? fill, Tensor(a!) out) -> bool");
  m.def(
      "ssd(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? key_range, Tensor? initial_state, "
      "Tensor(a!) y, Tensor(b!) state) -> ()");
  m.def(
      "ssd_backward(Tensor grad_y, Tensor? grad_state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, "
      "Tensor? key_range, Tensor? initial_state, Tensor(a!) dx, Tensor(b!) ddt, Tensor(c!) dA, Tensor(d!) dB, "
      "Tensor(e!) dC, Tensor(f!) dinitial) -> ()");
  m.def(
      "convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? initial, bool silu, Tensor(a!) out) -> ()");
  m.def(
      "convolution_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? initial, bool silu, "
      "Tensor(a!) dx, Tensor(b!) dweight) -> ()");
  m.def(
      "gated_norm(Tensor y, Tensor x, Tensor skip, Tensor z, Tensor weight, int groups, float eps, Tensor(a!) out) "
      "-> ()");
  m.def(
      "gated_norm_backward(Tensor grad, Tensor y, Tensor x, Tensor skip, Tensor z, Tensor weight, int groups, "
      "float eps, Tensor(a!) dy, Tensor(b!) dx, Tensor(c!) dskip, Tensor(d!) dz, Tensor(e!) dweight) -> ()");
  m.def("add_exponentials(Tensor x, Tensor(a!) top, Tensor(b!) total) -> ()");
  m.def("scaled_exponentials(Tensor(a!) x, Tensor level, Tensor factor) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(symground_C, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&symground::version));
}

STABLE_TORCH_LIBRARY_IMPL(symground_C, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&symground::attention_forward));
  m.impl("attention_saliency", TORCH_BOX(&symground::attention_saliency));
  m.impl("attention_flow", TORCH_BOX(&symground::attention_flow));
  m.impl("attention_backward", TORCH_BOX(&symground::attention_backward));
  m.impl("gate_heads", TORCH_BOX(&symground::run_gate));
  m.impl("ssd", TORCH_BOX(&symground::ssd));
  m.impl("ssd_backward", TORCH_BOX(&symground::ssd_backward));
  m.impl("convolution", TORCH_BOX(&symground::run_convolution));
  m.impl("convolution_backward", TORCH_BOX(&symground::run_convolution_backward));
  m.impl("gated_norm", TORCH_BOX(&symground::run_gated_norm));
  m.impl("gated_norm_backward", TORCH_BOX(&symground::run_gated_norm_backward));
  m.impl("add_exponentials", TORCH_BOX(&symground::add_exponentials));
  m.impl("scaled_exponentials", TORCH_BOX(&symground::scaled_exponentials));
}
