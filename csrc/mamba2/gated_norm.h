// Mamba-2's gated norm: RMSNorm((y + skip · x) · SiLU(z)) · weight. See gated_norm.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace symground {

// y [B,T,W] is contiguous; x and z [B,T,W] have contiguous rows; skip is [H], for the H heads in a row; weight is [W].
// Each of `groups` equal parts of a row has its own mean square. out [B,T,W] is contiguous.
void run_gated_norm(
    const torch::stable::Tensor& y, const torch::stable::Tensor& x, const torch::stable::Tensor& skip,
    const torch::stable::Tensor& z, const torch::stable::Tensor& weight, int64_t groups, double eps,
    const torch::stable::Tensor& out);

// From grad [B,T,W] contiguous and the same inputs: dy contiguous, dx and dz in the layouts of x and z, dskip, dweight.
void run_gated_norm_backward(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& y, const torch::stable::Tensor& x,
    const torch::stable::Tensor& skip, const torch::stable::Tensor& z, const torch::stable::Tensor& weight,
    int64_t groups, double eps, const torch::stable::Tensor& dy, const torch::stable::Tensor& dx,
    const torch::stable::Tensor& dskip, const torch::stable::Tensor& dz, const torch::stable::Tensor& dweight);

}  // namespace symground
