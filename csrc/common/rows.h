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

template <class T>
struct RowSummary {
  T entropy;   // −Σ p log p
  T distance;  // Σ p[j] · (away − j)
  T score;     // the largest s[j] · scale
};

// p[j] becomes exp(s[j] · scale − lse). Returns the factor that normalises p as in saliency_row; the summary (may be null) is
// of the normalised weights.
float weights_row(
    const float* s, float* p, int64_t n, float scale, float lse, float beside, float away, RowSummary<float>* found);
double weights_row(
    const double* s, double* p, int64_t n, double scale, double lse, double beside, double away, RowSummary<double>* found);

// The first j with s[j] · scale = score above −inf, or n.
int64_t find_row(const float* s, int64_t n, float scale, float score);
int64_t find_row(const double* s, int64_t n, double scale, double score);

// total[j] += factor · p[j]
void add_row(const float* p, float* total, int64_t n, float factor);
void add_row(const double* p, double* total, int64_t n, double factor);

// With ∂L/∂p[j] = d[j] = of_key[j] − entropy · (log p[j] + 1), where of_key may be null and log p = s · scale − lse is kept
// finite where p is 0: dp[j] becomes p ∘ (d − Σ p ∘ d), and Σ p ∘ d is returned. p is normalised as in saliency_row.
// s is overwritten.
float weights_gradient_row(
    float* s, const float* of_key, float* dp, int64_t n, float scale, float lse, float beside, float entropy);
double weights_gradient_row(
    double* s, const double* of_key, double* dp, int64_t n, double scale, double lse, double beside, double entropy);

// Updates top, the largest number so far, and total, the sum of exponentials relative to top, with the numbers of s.
void add_exponentials_row(const float* s, int64_t n, float& top, float& total);
void add_exponentials_row(const double* s, int64_t n, double& top, double& total);

// s[j] becomes factor · exp(s[j] − level).
void scaled_exponentials_row(float* s, int64_t n, float level, float factor);
void scaled_exponentials_row(double* s, int64_t n, double level, double factor);

}  // namespace symground
