// One binary serves every x86-64 machine: each loop is compiled for AVX-512, for AVX2 and for the baseline, and the
// loader picks. Elsewhere (arm64, macOS) the compiler's baseline has the vector instructions that count.
#pragma once

#ifdef EACH_MACHINE  // given empty by who builds for one machine, with -march=native say
#elif !defined(__x86_64__) || !defined(__GLIBC__) || !defined(__GNUC__)
#define EACH_MACHINE
#elif __clang_major__ >= 18 || (!defined(__clang__) && __GNUC__ >= 12)
// Levels, not names of processors: arch=haswell would be picked on a Haswell only, and all later ones run the baseline.
#define EACH_MACHINE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
#endif

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif
