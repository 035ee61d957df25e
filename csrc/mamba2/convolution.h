// Mamba-2's short convolution: depthwise, causal, with or without SiLU. See convolution.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace symground {

// x and out [B,T,C] of adjacent channels, weight [K,C] contiguous, bias [C] or none, initial [B,K-1,C] contiguous or
// none: what stands before the first position.
void run_convolution(
    const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
    const std::optional<torch::stable::Tensor>& bias, const std::optional<torch::stable::Tensor>& initial, bool silu,
    const torch::stable::Tensor& out);

// The gradients of x, of weight and bias together [K+1,C], the bias last, from grad and the same inputs.
void run_convolution_backward(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
    const std::optional<torch::stable::Tensor>& bias, const std::optional<torch::stable::Tensor>& initial, bool silu,
    const torch::stable::Tensor& dx, const torch::stable::Tensor& dweight);

}  // namespace symground
