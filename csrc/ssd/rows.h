// The elementwise steps of SSD, row by row. See rows.cpp.
#pragma once

#include <cstdint>

#include "../common/rows.h"

namespace symground {

// within[j] = exp(to − from[j]) and mixing[j] = scores[j] · within[j]. The sums are double: after a very strong decay,
// the difference of two float sums would have a large error.
void decay_row(const double* from, const float* scores, float* within, float* mixing, int64_t n, double to);
void decay_row(const double* from, const double* scores, double* within, double* mixing, int64_t n, double to);

// out[j] = factor · x[j]; x and out may be the same.
void scale_row(const float* x, float* out, int64_t n, float factor);
void scale_row(const double* x, double* out, int64_t n, double factor);

// Σ x[j] · y[j]
float dot_row(const float* x, const float* y, int64_t n);
double dot_row(const double* x, const double* y, int64_t n);

// s[j] = of_mixing[j] · mixing[j]; of_scores += of_mixing ∘ within.
void pairs_row(const float* of_mixing, const float* mixing, const float* within, float* of_scores, float* s, int64_t n);
void pairs_row(
    const double* of_mixing, const double* mixing, const double* within, double* of_scores, double* s, int64_t n);

}  // namespace symground
