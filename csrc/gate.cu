// gate · x + (1 − gate) · fill on a GPU: 16 bytes a load and a store, x read once however many masks there are.
//
// A warp's lanes take the vectors of a row [D], a block several rows, a thread several of those: their loads are under
// way together. What a gate of 0 or 1 drops is not read.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace symground {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int kThreads = 256;
// Rows of a thread: where offsets are long, more of them do not fit the registers.
template <class Index>
constexpr int kRowsOf = sizeof(Index) == 4 ? 4 : 1;

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Rounded one by one, as on a CPU: nvcc would make one fused instruction of them.
__device__ inline float product(float x, float y) { return __fmul_rn(x, y); }
__device__ inline double product(double x, double y) { return __dmul_rn(x, y); }
__device__ inline float sum(float x, float y) { return __fadd_rn(x, y); }
__device__ inline double sum(double x, double y) { return __dadd_rn(x, y); }

template <class T>
__device__ inline Wide<T> widened(T x) {
  if constexpr (std::is_same_v<T, __half>) return __half2float(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>) return __bfloat162float(x);
  else return x;
}

template <class T>
__device__ inline T narrowed(Wide<T> x) {
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(x);
  else return x;
}

template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
  T at[kVector];
};

struct Strides {
  int64_t m, b, t, h;
};

// What one launch works on. rows = B·T·H; D is counted in vectors.
template <class T>
struct Gate {
  const T* x;
  const Wide<T>* gate;
  const T* fill;
  T* out;
  int64_t M, B, T_, H, D, rows;
  Strides x_at, fill_at;
  bool one_fill;  // one number for a whole row
};

template <class T, int kVector, class Index>
__global__ void __launch_bounds__(kThreads) gate_kernel(const Gate<T> g, const int lanes) {
  using V = Vector<T, kVector>;
  constexpr int kRows = kRowsOf<Index>;
  const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes, slots = kThreads / lanes;
  const Index first = Index(blockIdx.x) * (slots * kRows) + slot;
  for (Index d = lane; d < Index(g.D); d += lanes) {
    Index b[kRows], t[kRows], h[kRows];
    V x[kRows];
    bool there[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Index row = first + Index(i) * slots;
      there[i] = row < Index(g.rows);
      if (!there[i]) continue;
      h[i] = row % Index(g.H);
      const Index rest = row / Index(g.H);
      t[i] = rest % Index(g.T_);
      b[i] = rest / Index(g.T_);
      bool read = false;
      for (int64_t m = 0; m < g.M && !read; ++m) {
        read = g.gate[(m * g.B + b[i]) * g.H + h[i]] != Wide<T>(0);
      }
      if (read) {
        const int64_t at = b[i] * g.x_at.b + t[i] * g.x_at.t + h[i] * g.x_at.h;
        x[i] = reinterpret_cast<const V*>(g.x + at)[d];
      }
    }
    for (int64_t m = 0; m < g.M; ++m) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (!there[i]) continue;
        const Wide<T> gate = g.gate[(m * g.B + b[i]) * g.H + h[i]];
        assert(gate == gate && "gate: expected numbers, got NaN");
        V out = x[i];
        if (gate != Wide<T>(1)) {
          V fill{};
          if (g.fill) {
            const int64_t at = m * g.fill_at.m + b[i] * g.fill_at.b + t[i] * g.fill_at.t + h[i] * g.fill_at.h;
            if (g.one_fill) {
#pragma unroll
              for (int j = 0; j < kVector; ++j) fill.at[j] = g.fill[at];
            } else {
              fill = reinterpret_cast<const V*>(g.fill + at)[d];
            }
          }
          const Wide<T> rest = sum(Wide<T>(1), -gate);
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            const Wide<T> kept = product(gate, widened(x[i].at[j]));
            out.at[j] = narrowed<T>(g.fill ? sum(kept, product(rest, widened(fill.at[j]))) : kept);
          }
          if (gate == Wide<T>(0)) out = fill;
        }
        const int64_t row = (m * g.B + b[i]) * g.T_ + t[i];
        reinterpret_cast<V*>(g.out)[(row * g.H + h[i]) * g.D + d] = out;
      }
    }
  }
}

template <class T>
bool aligned(const void* data, const Strides& at, int vector) {
  const int64_t strides = at.m | at.b | at.t | at.h;
  return reinterpret_cast<uintptr_t>(data) % (sizeof(T) * vector) == 0 && strides % vector == 0;
}

template <class T, int kVector, class Index>
void launch_with(const Gate<T>& g, cudaStream_t stream) {
  int lanes = 1;
  while (lanes < 32 && lanes < g.D) lanes *= 2;
  const int64_t rows_of_block = int64_t(kThreads / lanes) * kRowsOf<Index>;
  const int64_t blocks = (g.rows + rows_of_block - 1) / rows_of_block;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "gate_heads: ", g.rows, " rows are more than a launch takes");
  gate_kernel<T, kVector, Index><<<blocks, kThreads, 0, stream>>>(g, lanes);
}

template <class T, int kVector>
void launch(Gate<T> g, cudaStream_t stream) {
  g.D /= kVector;
  // Short numbers where they hold all there are: divisions of long ones are slow.
  const bool is_short = g.rows < INT32_MAX / 2 && g.D < INT32_MAX / 2;
  is_short ? launch_with<T, kVector, uint32_t>(g, stream) : launch_with<T, kVector, int64_t>(g, stream);
}

template <class T>
void run(const Tensor& x, const Tensor& gate, const OptionalTensor& fill, const Tensor& out) {
  Gate<T> g{static_cast<const T*>(x.data_ptr()),
            static_cast<const Wide<T>*>(gate.data_ptr()),
            fill ? static_cast<const T*>(fill->data_ptr()) : nullptr,
            static_cast<T*>(out.data_ptr()),
            out.size(0), out.size(1), out.size(2), out.size(3), out.size(4),
            out.size(1) * out.size(2) * out.size(3),
            {0, x.stride(0), x.stride(1), x.stride(2)},
            {0, 0, 0, 0},
            fill && (fill->stride(4) == 0 || x.size(3) == 1)};
  if (fill) g.fill_at = {fill->stride(0), fill->stride(1), fill->stride(2), fill->stride(3)};
  if (g.rows == 0 || g.D == 0 || g.M == 0) return;
  const auto device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  constexpr int kVector = 16 / sizeof(T);
  const bool wide = g.D % kVector == 0 && aligned<T>(g.x, g.x_at, kVector) && aligned<T>(g.out, {}, kVector) &&
                    (!g.fill || g.one_fill || aligned<T>(g.fill, g.fill_at, kVector));
  wide ? launch<T, kVector>(g, static_cast<cudaStream_t>(stream)) : launch<T, 1>(g, static_cast<cudaStream_t>(stream));
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "gate_heads: ", cudaGetErrorString(error));
}

void run_gate(const Tensor& x, const Tensor& gate, const OptionalTensor& fill, const Tensor& out) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Double: return run<double>(x, gate, fill, out);
    case ScalarType::Float: return run<float>(x, gate, fill, out);
    case ScalarType::Half: return run<__half>(x, gate, fill, out);
    case ScalarType::BFloat16: return run<__nv_bfloat16>(x, gate, fill, out);
    default: STD_TORCH_CHECK(false, "gate_heads: expected float64, float32, float16 or bfloat16");
  }
}

int64_t version() { return SYMGROUND_VERSION; }

}  // namespace
}  // namespace symground

// Its own number: a part that was built of other sources than _C.so is not called.
STABLE_TORCH_LIBRARY_FRAGMENT(symground_CUDA, m) { m.def("version() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(symground_CUDA, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&symground::version));
}

// The schema is operators.cpp's.
STABLE_TORCH_LIBRARY_IMPL(symground_C, CUDA, m) {
  m.impl("gate_heads", TORCH_BOX(&symground::run_gate));
}
