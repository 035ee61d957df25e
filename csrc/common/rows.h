// The elementwise steps of attention, saliency, flow and a vocabulary's softmax, row by row. See rows.cpp.
#pragma once

#include <cstdint>

namespace symground {

// s[j] becomes softcap · tanh(s[j] · scale / softcap) + slope · (distance + j), and bend[j] (may be null) the derivative
// of the tanh. A softcap of 0 is none: s[j] · scale + slope · (distance + j), and bend must be null.
void logits_row(
    float* s, float* bend, int64_t n, float scale, float softcap, float slope, int64_t distance);
void logits_row(
    double* s, double* bend, int64_t n, double scale, double softcap, double slope, int64_t distance);

// log(exp(sink) + Σ_j exp(s[j] · scale)), −inf for an empty row without a sink, which is -inf. s becomes
// gate · exp(s · scale) over that sum, or anything if gate is 0.
float softmax_row(float* s, int64_t n, float scale, float sink, float gate);
double softmax_row(double* s, int64_t n, double scale, double sink, double gate);

// total[j] += gate · p[j] · dp[j], where p[j] = exp(s[j] · scale − lse), over all the keys that the query sees. A large
// lse is rounded by more than the error allowed in p. So if the sum of p and of what is beside it (the sink's part)
// differs from 1 by no more than that rounding, p is divided by it. s is overwritten.
void saliency_row(float* s, const float* dp, float* total, int64_t n, float scale, float lse, float beside, float gate);
void saliency_row(double* s, const double* dp, double* total, int64_t n, double scale, double lse, double beside, double gate);

// column[j] += |gate · p[j] · dp[j]|
void magnitude_row(float* s, const float* dp, float* column, int64_t n, float scale, float lse, float beside, float gate);
void magnitude_row(double* s, const double* dp, double* column, int64_t n, double scale, double lse, double beside, double gate);

// Both of the above (total and column may be null). In place, s becomes p and dp becomes
// dS = gate · p ∘ (dp − Σ p ∘ dp). Here lse is that of the forward pass, so p is always normalised: with what is beside it, its sum
// is 1.
void gradient_row(
    float* s, float* dp, float* total, float* column, int64_t n, float scale, float lse, float beside, float gate);
void gradient_row(
    double* s, double* dp, double* total, double* column, int64_t n, double scale, double lse, double beside, double gate);

// Updates top, the largest number so far, and total, the sum of exponentials relative to top, with the numbers of s.
void add_exponentials_row(const float* s, int64_t n, float& top, float& total);
void add_exponentials_row(const double* s, int64_t n, double& top, double& total);

// s[j] becomes factor · exp(s[j] − level).
void scaled_exponentials_row(float* s, int64_t n, float level, float factor);
void scaled_exponentials_row(double* s, int64_t n, double level, double factor);

}  // namespace symground
