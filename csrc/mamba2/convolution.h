// Mamba-2's short convolution: depthwise, causal, with or without SiLU. See convolution.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace symground {

// x and out [B,T,C] have contiguous channels; weight [K,C] is contiguous; bias is [C] or none; initial, the positions
// before the first, is [B,K-1,C] contiguous or none.
void run_convolution(
    const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
    const std::optional<torch::stable::Tensor>& bias, const std::optional<torch::stable::Tensor>& initial, bool silu,
    const torch::stable::Tensor& out);

// From grad and the same inputs, the gradients of x and, together as [K+1,C] with the bias last, of weight and bias.
void run_convolution_backward(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
    const std::optional<torch::stable::Tensor>& bias, const std::optional<torch::stable::Tensor>& initial, bool silu,
    const torch::stable::Tensor& dx, const torch::stable::Tensor& dweight);

}  // namespace symground
