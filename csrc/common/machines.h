// One binary for every x86-64 machine: each loop is compiled for AVX-512, for AVX2 and for the baseline, and the loader
// picks one. Elsewhere (arm64, macOS) the compiler's baseline has the vector instructions that matter.
#pragma once

#ifdef EACH_MACHINE  // define it as empty to build for one machine, such as with -march=native
#elif !defined(__x86_64__) || !defined(__GLIBC__) || !defined(__GNUC__)
#define EACH_MACHINE
#elif __clang_major__ >= 18 || (!defined(__clang__) && __GNUC__ >= 12)
// Levels instead of processor names: arch=haswell would be picked only on a Haswell, not on later processors.
#define EACH_MACHINE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
#endif

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif
