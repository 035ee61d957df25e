// The elementwise part of attention, its saliency and flow, one query's row at a time. See rows.cpp.
#pragma once

#include <cstdint>

namespace symground {

// log Σ_j exp(s[j] · scale), −inf for no numbers; s becomes gate · softmax(s · scale), but with gate 0 anything.
float softmax_row(float* s, int64_t n, float scale, float gate);
double softmax_row(double* s, int64_t n, double scale, double gate);

// total[j] += gate · p[j] · dp[j], where p[j] = exp(s[j] · scale − lse).
void saliency_row(const float* s, const float* dp, float* total, int64_t n, float scale, float lse, float gate);
void saliency_row(const double* s, const double* dp, double* total, int64_t n, double scale, double lse, double gate);

// column[j] += |gate · p[j] · dp[j]|
void magnitude_row(const float* s, const float* dp, float* column, int64_t n, float scale, float lse, float gate);
void magnitude_row(const double* s, const double* dp, double* column, int64_t n, double scale, double lse, double gate);

// Both of the above (total and column may be null), and in place s becomes p, and dp becomes
// dS = gate · p ∘ (dp − Σ p ∘ dp).
void gradient_row(
    float* s, float* dp, float* total, float* column, int64_t n, float scale, float lse, float gate);
void gradient_row(
    double* s, double* dp, double* total, double* column, int64_t n, double scale, double lse, double gate);

}  // namespace symground
