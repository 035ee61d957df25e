// The operators of symground_C: attention's saliency and flow on a CPU, alone or together with its gradients; attention
// where heads have gates; what is read off its weights; SSD and the steps around it in a Mamba-2 layer; gates alone; and the exponentials of a
// vocabulary's softmax. gate/gate.cu registers the same operators for a GPU.
//
// A thread processes a tile of queries against all the keys they see, one head after the other. Torch's own matrix
// multiplication computes the products (on one thread inside a parallel region), and the loops of common/rows.cpp do
// the rest while the tile is in the cache. No two threads write to the same memory, so results do not depend on timing.
// A head whose gate is 0 is skipped.

#include <torch/csrc/stable/library.h>

#include "attention/attention.h"
#include "attention/backward.h"
#include "mamba2/convolution.h"
#include "attention/flow.h"
#include "attention/forward.h"
#include "gate/gate.h"
#include "mamba2/gated_norm.h"
#include "attention/saliency.h"
#include "attention/weights.h"
#include "ssd/ssd.h"
#include "ssd/backward.h"
#include "vocabulary/vocabulary.h"

namespace symground {
namespace {

bool is_double(const Tensor& lse) { return lse.scalar_type() == ScalarType::Double; }

template <class T>
Groups<T> groups_of(
    const OptionalTensor& query_groups, const OptionalTensor& key_groups, const Tensor& flow,
    const OptionalTensor& row_total, const OptionalTensor& matrix_total) {
  return {pointer<const int32_t>(query_groups), pointer<const int32_t>(key_groups), flow.size(2), flow.size(3),
          static_cast<T*>(flow.data_ptr()), pointer<T>(row_total), pointer<T>(matrix_total)};
}

// `result` has the output's shape: it is the output or its gradient.
Checked checked_attention(
    const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& result, const Tensor& lse,
    const Mixing& how) {
  const Checked check(op, lse);
  check.computes();
  check("q", q, {-1, -1, -1, -1}, Memory::any);
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), size = q.size(3);
  check("k", k, {batch, -1, -1, size}, Memory::any);
  const int64_t key_heads = k.size(1), keys = k.size(2);
  check.that(key_heads > 0 && heads % key_heads == 0, "k: expected Hk to divide H = ", heads, ", got ", key_heads);
  check.that(size > 0, "q: expected a head size of at least 1, got 0");
  check.that(std::max(queries, keys) <= INT32_MAX, "q, k: expected fewer than 2^31 positions");
  check.that(how.window.value_or(1) >= 1, "window: expected at least 1, got ", how.window.value_or(1));
  check("v", v, {batch, key_heads, keys, -1}, Memory::any);
  check.that(v.size(3) > 0, "v: expected a head size of at least 1, got 0");
  check("grad_out", result, {batch, heads, queries, v.size(3)}, Memory::any);
  check("lse", lse, {batch, heads, queries});
  check("gate", how.gate, {batch, heads});
  check.ids("key_range", how.key_range, ScalarType::Long, {batch, 2});
  check.that(how.softcap.value_or(1) > 0, "softcap: expected a number above 0, got ", how.softcap.value_or(1));
  check("sink", how.sink, {heads});
  check("slopes", how.slopes, {heads});
  check.ids("segments", how.segments, ScalarType::Long, {batch, keys});
  check.ids("blocks", how.blocks, ScalarType::Long, {batch, keys});
  check.that(!(how.segments || how.blocks) || queries <= keys, "segments, blocks: expected T <= S, got T = ", queries,
             ", S = ", keys);
  return check;
}

void attention_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& gate, bool causal, double scale,
    const OptionalTensor& key_range, std::optional<int64_t> window, std::optional<double> softcap, const OptionalTensor& sink,
    const OptionalTensor& slopes, const OptionalTensor& segments, const OptionalTensor& blocks, const Tensor& out, const Tensor& lse) {
  const Mixing how{gate, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks};
  const auto check = checked_attention("attention_forward", q, k, v, out, lse, how);
  check.written("out", out, {q.size(0), q.size(1), q.size(2), v.size(3)}, Memory::any);
  const auto run = [&]<class T>(T) {  // there is no gradient yet; out has its shape
    run_forward(Attention<T>(q, k, v, out, lse, how), Heads<T>(out),
                pointer<T>(lse));
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void attention_saliency(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out, const Tensor& lse,
    const OptionalTensor& gate, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, std::optional<double> softcap, const OptionalTensor& sink,
    const OptionalTensor& slopes, const OptionalTensor& segments, const OptionalTensor& blocks, const Tensor& total) {
  const Mixing how{gate, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks};
  const auto check = checked_attention("attention_saliency", q, k, v, grad_out, lse, how);
  check("total", total, {q.size(0), q.size(2), k.size(2)});
  const auto run = [&]<class T>(T) {
    run_saliency(Attention<T>(q, k, v, grad_out, lse, how), pointer<T>(total));
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void attention_flow(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out, const Tensor& lse,
    const OptionalTensor& gate, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, std::optional<double> softcap, const OptionalTensor& sink,
    const OptionalTensor& slopes, const OptionalTensor& segments, const OptionalTensor& blocks, const Tensor& query_groups, const Tensor& key_groups, const Tensor& flow,
    const Tensor& row_total, const OptionalTensor& matrix_total) {
  const Mixing how{gate, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks};
  const auto check = checked_attention("attention_flow", q, k, v, grad_out, lse, how);
  const int64_t batch = q.size(0), heads = q.size(1);
  check.ids("query_groups", query_groups, ScalarType::Int, {batch, q.size(2)});
  check.ids("key_groups", key_groups, ScalarType::Int, {batch, k.size(2)});
  check("flow", flow, {batch, heads, -1, -1});
  check("row_total", row_total, {batch, heads, flow.size(2)});
  check("matrix_total", matrix_total, {batch, heads});
  const auto run = [&]<class T>(T) {
    run_flow(Attention<T>(q, k, v, grad_out, lse, how),
             groups_of<T>(query_groups, key_groups, flow, row_total, matrix_total));
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void attention_backward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out, const Tensor& lse,
    const OptionalTensor& gate, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, std::optional<double> softcap, const OptionalTensor& sink,
    const OptionalTensor& slopes, const OptionalTensor& segments, const OptionalTensor& blocks, const Tensor& dq, const Tensor& dk, const Tensor& dv, const OptionalTensor& dslopes,
    const OptionalTensor& total, const OptionalTensor& query_groups, const OptionalTensor& key_groups,
    const OptionalTensor& flow) {
  const Mixing how{gate, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks};
  const auto check = checked_attention("attention_backward", q, k, v, grad_out, lse, how);
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), keys = k.size(2), size = q.size(3);
  check.written("dq", dq, {batch, heads, queries, size}, Memory::any);
  check.written("dk", dk, {batch, k.size(1), keys, size}, Memory::any);
  check.written("dv", dv, {batch, k.size(1), keys, v.size(3)}, Memory::any);
  check("dslopes", dslopes, {batch, heads});
  check.that(!dslopes || slopes, "dslopes: expected slopes beside it");
  check("total", total, {batch, queries, keys});
  check("flow", flow, {batch, heads, -1, -1});
  check.ids("query_groups", query_groups, ScalarType::Int, {batch, queries});
  check.ids("key_groups", key_groups, ScalarType::Int, {batch, keys});
  check.that(!flow || (query_groups && key_groups), "flow: expected query_groups and key_groups beside it");
  const auto run = [&]<class T>(T) {
    const Attention<T> x(q, k, v, grad_out, lse, how);
    Backward<T> y{x, Heads<T>(dq), Heads<T>(dk), Heads<T>(dv), pointer<T>(total), nullptr, nullptr,
                  pointer<T>(dslopes)};
    if (!flow) return run_backward(y);
    const auto groups = groups_of<T>(query_groups, key_groups, *flow, std::nullopt, std::nullopt);
    const QueryOrder order(x, groups, true);
    y.groups = &groups;
    y.order = &order;
    run_backward(y);
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

// The checks of the groups of the ops that read no values. One group needs no ids of queries.
WeightGroups checked_groups(
    const Checked& check, const Tensor& q, const Tensor& k, const OptionalTensor& query_groups,
    const OptionalTensor& key_groups, const OptionalTensor& mass, const OptionalTensor& received) {
  const int64_t batch = q.size(0), heads = q.size(1), keys = k.size(2);
  check.ids("query_groups", query_groups, ScalarType::Int, {batch, q.size(2)});
  check.ids("key_groups", key_groups, ScalarType::Int, {batch, keys});
  check("mass", mass, {batch, heads, -1, -1});
  check("received", received, {batch, heads, -1, keys});
  check.that(!mass || key_groups, "mass: expected key_groups beside it");
  const int64_t groups = mass ? mass->size(2) : received ? received->size(2) : 1;
  check.that(!(mass && received) || received->size(2) == groups, "received: expected as many groups as mass has");
  check.that(query_groups || groups == 1, "query_groups: expected ids of ", groups, " groups");
  return {pointer<const int32_t>(query_groups), pointer<const int32_t>(key_groups), groups, mass ? mass->size(3) : 0};
}

void attention_weights(
    const Tensor& q, const Tensor& k, const Tensor& lse, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, std::optional<double> softcap, const OptionalTensor& sink,
    const OptionalTensor& slopes, const OptionalTensor& segments, const OptionalTensor& blocks,
    const OptionalTensor& query_groups, const OptionalTensor& key_groups, const OptionalTensor& mass,
    const OptionalTensor& received, const OptionalTensor& entropy, const OptionalTensor& weight,
    const OptionalTensor& key, const OptionalTensor& score, const OptionalTensor& distance,
    const OptionalTensor& pooled, int64_t block, bool largest) {
  const Mixing how{std::nullopt, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks};
  const auto check = checked_attention("attention_weights", q, k, k, q, lse, how);
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2);
  const auto groups = checked_groups(check, q, k, query_groups, key_groups, mass, received);
  for (const auto& [name, x] : {std::pair{"entropy", &entropy}, {"weight", &weight}, {"score", &score}, {"distance", &distance}}) {
    check(name, *x, {batch, heads, queries});
    check.that(x->has_value() == key.has_value(), name, ": expected all results of a summary or none");
  }
  check.ids("key", key, ScalarType::Long, {batch, heads, queries});
  check.that(!pooled || block >= 1, "block: expected at least 1, got ", block);
  if (pooled) check("pooled", *pooled, {batch, heads, (queries + block - 1) / block, (k.size(2) + block - 1) / block});
  const auto run = [&]<class T>(T) {
    run_weights(Attention<T>(q, k, k, q, lse, how),
                Weights<T>{groups, pointer<T>(mass), pointer<T>(received), pointer<T>(entropy), pointer<T>(weight),
                           pointer<T>(score), pointer<T>(distance), pointer<int64_t>(key), pointer<T>(pooled), block,
                           largest});
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

void attention_weights_backward(
    const Tensor& q, const Tensor& k, const Tensor& lse, bool causal, double scale, const OptionalTensor& key_range,
    std::optional<int64_t> window, std::optional<double> softcap, const OptionalTensor& sink,
    const OptionalTensor& slopes, const OptionalTensor& segments, const OptionalTensor& blocks,
    const OptionalTensor& query_groups, const OptionalTensor& key_groups, const OptionalTensor& mass,
    const OptionalTensor& received, const OptionalTensor& entropy, const Tensor& dq, const Tensor& dk,
    const OptionalTensor& dsink, const OptionalTensor& dslopes) {
  const Mixing how{std::nullopt, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks};
  const auto check = checked_attention("attention_weights_backward", q, k, k, q, lse, how);
  const int64_t batch = q.size(0), heads = q.size(1);
  const auto groups = checked_groups(check, q, k, query_groups, key_groups, mass, received);
  check("entropy", entropy, {batch, heads, q.size(2)});
  check.written("dq", dq, {batch, heads, q.size(2), q.size(3)}, Memory::any);
  check.written("dk", dk, {batch, k.size(1), k.size(2), q.size(3)}, Memory::any);
  check("dsink", dsink, {batch, heads});
  check("dslopes", dslopes, {batch, heads});
  check.that(!dsink || sink, "dsink: expected a sink beside it");
  check.that(!dslopes || slopes, "dslopes: expected slopes beside it");
  const auto run = [&]<class T>(T) {
    run_weights_backward(
        Attention<T>(q, k, k, q, lse, how),
        WeightsBackward<T>{groups, pointer<const T>(mass), pointer<const T>(received), pointer<const T>(entropy),
                           Heads<T>(dq), Heads<T>(dk), pointer<T>(dsink), pointer<T>(dslopes)});
  };
  is_double(lse) ? run(0.0) : run(0.0f);
}

Checked checked_ssd(
    const char* op, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& key_range, const OptionalTensor& initial_state) {
  const Checked check(op, x);
  check.computes();
  check("x", x, {-1, -1, -1, -1}, Memory::rows);
  const int64_t batch = x.size(0), length = x.size(1), heads = x.size(2), size = x.size(3);
  check("dt", dt, {batch, length, heads}, Memory::any);
  check("A", A, {heads});
  check("B", B, {batch, length, -1, -1}, Memory::rows);
  const int64_t groups = B.size(2), state = B.size(3);
  check.that(groups > 0 && heads % groups == 0, "B: expected its groups to divide H = ", heads, ", got ", groups);
  check("C", C, {batch, length, groups, state}, Memory::rows);
  check.ids("key_range", key_range, ScalarType::Long, {batch, 2});
  check("initial_state", initial_state, {batch, heads, size, state});
  return check;
}

void ssd(
    const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& key_range, const OptionalTensor& initial_state, const Tensor& y, const Tensor& state) {
  const auto check = checked_ssd("ssd", x, dt, A, B, C, key_range, initial_state);
  check("y", y, {x.size(0), x.size(1), x.size(2), x.size(3)});
  check("state", state, {x.size(0), x.size(2), x.size(3), B.size(3)});
  const auto run = [&]<class T>(T) {
    run_ssd(SSD<T>(x, dt, A, B, C, key_range, initial_state), pointer<T>(y), pointer<T>(state));
  };
  is_double(x) ? run(0.0) : run(0.0f);
}

void ssd_backward(
    const Tensor& grad_y, const OptionalTensor& grad_state, const Tensor& x, const Tensor& dt, const Tensor& A,
    const Tensor& B, const Tensor& C, const OptionalTensor& key_range, const OptionalTensor& initial_state,
    const Tensor& dx, const Tensor& ddt, const Tensor& dA, const Tensor& dB, const Tensor& dC, const Tensor& dinitial) {
  const auto check = checked_ssd("ssd_backward", x, dt, A, B, C, key_range, initial_state);
  const int64_t batch = x.size(0), length = x.size(1), heads = x.size(2), size = x.size(3);
  const int64_t groups = B.size(2), state = B.size(3);
  check("grad_y", grad_y, {batch, length, heads, size}, Memory::rows);
  // The heads of a group are read as one matrix.
  check.that(heads <= 1 || grad_y.stride(2) == size || grad_y.numel() == 0, "grad_y: expected contiguous heads");
  check("grad_state", grad_state, {batch, heads, size, state});
  check.written("dx", dx, {batch, length, heads, size}, Memory::rows);
  check("ddt", ddt, {batch, length, heads});
  check("dA", dA, {batch, heads});
  check.written("dB", dB, {batch, length, groups, state}, Memory::rows);
  check.written("dC", dC, {batch, length, groups, state}, Memory::rows);
  check("dinitial", dinitial, {batch, heads, size, state});
  const auto run = [&]<class T>(T) {
    run_ssd_backward(SSD<T>(x, dt, A, B, C, key_range, initial_state),
                     SSDGradients<T>{Rows<T>(grad_y), pointer<const T>(grad_state), Rows<T>(dx), pointer<T>(ddt),
                                     pointer<T>(dA), Rows<T>(dB), Rows<T>(dC), pointer<T>(dinitial)});
  };
  is_double(x) ? run(0.0) : run(0.0f);
}

void add_exponentials(const Tensor& x, const Tensor& top, const Tensor& total) {
  const Checked check("add_exponentials", x);
  check.computes();
  check("x", x, {-1, -1}, Memory::rows);
  check("top", top, {x.size(0)});
  check("total", total, {x.size(0)});
  const auto run = [&]<class T>(T) {
    run_add_exponentials(x, static_cast<T*>(top.data_ptr()), static_cast<T*>(total.data_ptr()));
  };
  is_double(x) ? run(0.0) : run(0.0f);
}

void scaled_exponentials(const Tensor& x, const Tensor& level, const Tensor& factor) {
  const Checked check("scaled_exponentials", x);
  check.computes();
  check.written("x", x, {-1, -1}, Memory::rows);
  check("level", level, {x.size(0)});
  check("factor", factor, {x.size(0)});
  const auto run = [&]<class T>(T) {
    run_scaled_exponentials<T>(x, static_cast<T*>(level.data_ptr()), static_cast<T*>(factor.data_ptr()));
  };
  is_double(x) ? run(0.0) : run(0.0f);
}

// The number in symground/ops/common/build.py; extension.py rejects a build with another one.
int64_t version() { return SYMGROUND_VERSION; }

}  // namespace
}  // namespace symground

// All tensors have one dtype, float32 or float64, except the groups (int32) and key_range (int64). Each operator checks
// its tensors (checks.h); ids may be anything, and those outside a tensor are ignored. The caller zeroes the results to
// which operators add: total, flow, row_total, matrix_total, dk, dv, and dq (where a row or head without a gradient is
// not written). Those of a summary hold what is found where a query sees no key.
STABLE_TORCH_LIBRARY_FRAGMENT(symground_C, m) {
  m.def("version() -> int");
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor? gate, bool causal, float scale, Tensor? key_range, "
      "int? window, float? softcap, Tensor? sink, Tensor? slopes, Tensor? segments, Tensor? blocks, Tensor(a!) out, "
      "Tensor(b!) lse) -> ()");
  m.def(
      "attention_saliency(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, Tensor? gate, bool causal, "
      "float scale, Tensor? key_range, int? window, float? softcap, Tensor? sink, Tensor? slopes, Tensor? segments, "
      "Tensor? blocks, Tensor(a!) total) -> ()");
  m.def(
      "attention_flow(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, Tensor? gate, bool causal, "
      "float scale, Tensor? key_range, int? window, float? softcap, Tensor? sink, Tensor? slopes, Tensor? segments, "
      "Tensor? blocks, Tensor query_groups, Tensor key_groups, Tensor(a!) flow, Tensor(b!) row_total, "
      "Tensor(c!)? matrix_total) -> ()");
  m.def(
      "attention_backward(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, Tensor? gate, bool causal, "
      "float scale, Tensor? key_range, int? window, float? softcap, Tensor? sink, Tensor? slopes, Tensor? segments, "
      "Tensor? blocks, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!)? dslopes, Tensor(e!)? total, "
      "Tensor? query_groups, Tensor? key_groups, Tensor(f!)? flow) -> ()");
  m.def(
      "attention_weights(Tensor q, Tensor k, Tensor lse, bool causal, float scale, Tensor? key_range, int? window, "
      "float? softcap, Tensor? sink, Tensor? slopes, Tensor? segments, Tensor? blocks, Tensor? query_groups, "
      "Tensor? key_groups, Tensor(a!)? mass, Tensor(b!)? received, Tensor(c!)? entropy, Tensor(d!)? weight, "
      "Tensor(e!)? key, Tensor(f!)? score, Tensor(g!)? distance, Tensor(h!)? pooled, int block, bool largest) -> ()");
  m.def(
      "attention_weights_backward(Tensor q, Tensor k, Tensor lse, bool causal, float scale, Tensor? key_range, "
      "int? window, float? softcap, Tensor? sink, Tensor? slopes, Tensor? segments, Tensor? blocks, "
      "Tensor? query_groups, Tensor? key_groups, Tensor? mass, Tensor? received, Tensor? entropy, Tensor(a!) dq, "
      "Tensor(b!) dk, Tensor(c!)? dsink, Tensor(d!)? dslopes) -> ()");
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
  m.impl("attention_weights", TORCH_BOX(&symground::attention_weights));
  m.impl("attention_weights_backward", TORCH_BOX(&symground::attention_weights_backward));
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
