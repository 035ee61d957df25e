// gate · x + (1 − gate) · fill, head by head.
#pragma once

#include "attention.h"

namespace symground {

// out [M,B,T,H,D] contiguous, from x [B,T,H,D] and fill [M,B,T,H,D], both of any strides but adjacent columns (stride 0
// where fill is one number for a whole row); of one dtype, float64, float32 or a half one. gate [M,B,H] is contiguous, in
// float64 for float64, else in float32.
void run_gate(const Tensor& x, const Tensor& gate, const OptionalTensor& fill, const Tensor& out);

}  // namespace symground
