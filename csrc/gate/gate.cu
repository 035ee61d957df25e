// gate · x + (1 − gate) · fill on a GPU. Each load and store has 16 bytes, and x is read once for any number of masks.
//
// The lanes of a warp process the vectors of a row [D]; a block has several rows, and so has each thread, whose loads
// overlap. Where the gate is 0 or 1, the dropped operand is not read.

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

#include "gate.h"

namespace symground {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kRows = 4;  // per thread

// Rounded separately, as on a CPU; nvcc would fuse them.
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

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) gate_kernel(const Gate<T> g, const uint32_t rows, const int lanes) {
  using V = Vector<T, kVector>;
  const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes, slots = kThreads / lanes;
  const uint32_t first = blockIdx.x * (slots * kRows) + slot;
  for (uint32_t d = lane; d < uint32_t(g.D); d += lanes) {
    uint32_t b[kRows], t[kRows], h[kRows];
    V x[kRows];
    bool there[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const uint32_t row = first + uint32_t(i) * slots;
      there[i] = row < rows;
      if (!there[i]) continue;
      h[i] = row % uint32_t(g.H);
      const uint32_t rest = row / uint32_t(g.H);
      t[i] = rest % uint32_t(g.T_);
      b[i] = rest / uint32_t(g.T_);
      bool read = false;
      for (int64_t m = 0; m < g.M && !read; ++m) {
        read = g.gate[m * g.gate_at.m + b[i] * g.gate_at.b + h[i] * g.gate_at.h] != Wide<T>(0);
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
        const Wide<T> gate = g.gate[m * g.gate_at.m + b[i] * g.gate_at.b + h[i] * g.gate_at.h];
        assert(gate == gate && "gate: expected numbers");
        V out = x[i];
        if (gate != Wide<T>(1)) {
          V fill{};
          if (g.fill) {
            const int64_t at = m * g.fill_at.m + b[i] * g.fill_at.b + t[i] * g.fill_at.t + h[i] * g.fill_at.h;
            if (g.fill_at.d == 0) {
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

template <class T, int kVector>
void launch_rows(const Gate<T>& g, int64_t rows, cudaStream_t stream) {
  int lanes = 1;
  while (lanes < 32 && lanes < g.D) lanes *= 2;
  const uint32_t rows_of_block = kThreads / lanes * kRows, blocks = (rows + rows_of_block - 1) / rows_of_block;
  gate_kernel<T, kVector><<<blocks, kThreads, 0, stream>>>(g, rows, lanes);
}

// From here on D counts vectors. The rows of a launch are counted in 32 bits, because longer divisions are slow; if
// there are more rows than that, each example has its own launches.
template <class T, int kVector>
void launch(Gate<T> g, cudaStream_t stream) {
  const int64_t most = int64_t(1) << 30, row = g.D;
  g.D /= kVector;
  if (g.B * g.T_ * g.H <= most) return launch_rows<T, kVector>(g, g.B * g.T_ * g.H, stream);
  const int64_t tokens = std::max<int64_t>(1, most / g.H);
  for (int64_t b = 0; b < g.B; ++b) {
    for (int64_t t = 0; t < g.T_; t += tokens) {
      Gate<T> piece = g;  // keeps the whole's B and T, which give the layout of out
      piece.x += b * g.x_at.b + t * g.x_at.t;
      piece.gate += b * g.gate_at.b;
      if (g.fill) piece.fill += b * g.fill_at.b + t * g.fill_at.t;
      piece.out += (b * g.T_ + t) * g.H * row;
      launch_rows<T, kVector>(piece, std::min(tokens, g.T_ - t) * g.H, stream);
    }
  }
}

template <class T>
void run(const Gate<T>& g, cudaStream_t stream) {
  if (g.M * g.B * g.T_ * g.H * g.D == 0) return;
  constexpr int kVector = 16 / sizeof(T);
  const bool wide = g.D % kVector == 0 && aligned<T>(g.x, g.x_at, kVector) && aligned<T>(g.out, {}, kVector) &&
                    (!g.fill || g.fill_at.d == 0 || aligned<T>(g.fill, g.fill_at, kVector));
  wide ? launch<T, kVector>(g, stream) : launch<T, 1>(g, stream);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "gate_heads: ", cudaGetErrorString(error));
}

}  // namespace

bool run_gate(const Tensor& x, const Tensor& gate, const std::optional<Tensor>& fill, const Tensor& out) {
  const auto device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  with_gate<__half, __nv_bfloat16>(
      x, gate, fill, out, [&](const auto& g) { run(g, static_cast<cudaStream_t>(stream)); });
  return true;
}

}  // namespace symground

// operators.cpp has the schema.
STABLE_TORCH_LIBRARY_IMPL(symground_C, CUDA, m) {
  m.impl("gate_heads", TORCH_BOX(&symground::run_gate));
}
