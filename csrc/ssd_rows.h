// The elementwise part of SSD, row by row. See ssd_rows.cpp.
#pragma once

#include <cstdint>

namespace symground {

// within[j] = exp(to − from[j]) and mixing[j] = scores[j] · within[j].
void decay_row(const float* from, const float* scores, float* within, float* mixing, int64_t n, float to);
void decay_row(const double* from, const double* scores, double* within, double* mixing, int64_t n, double to);

// out[j] = factor · x[j]; the two may be one.
void scale_row(const float* x, float* out, int64_t n, float factor);
void scale_row(const double* x, double* out, int64_t n, double factor);

// out[j] += factor · x[j]
void add_row(const float* x, float* out, int64_t n, float factor);
void add_row(const double* x, double* out, int64_t n, double factor);

// Σ x[j] · y[j]
float dot_row(const float* x, const float* y, int64_t n);
double dot_row(const double* x, const double* y, int64_t n);

// Σ s[j], s = of_mixing ∘ mixing; columns takes s, and of_scores takes of_mixing ∘ within.
float pairs_row(
    const float* of_mixing, const float* mixing, const float* within, float* of_scores, float* columns, int64_t n);
double pairs_row(
    const double* of_mixing, const double* mixing, const double* within, double* of_scores, double* columns, int64_t n);

}  // namespace symground
