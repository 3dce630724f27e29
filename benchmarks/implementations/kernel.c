/* GRPO on questions with K actions: W runs side by side in vector lanes, blocks of runs over threads.
   K, Q, G, MU, REAL and W are given when compiling. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <stdlib.h>

#define LANES _Pragma("omp simd") for (int r = 0; r < W; r++)
typedef REAL lanes[W];
typedef struct { REAL lr, clip, coef, b1, b2, eps, decay; } numbers;

static inline REAL uniform(uint32_t seed, uint32_t counter) {
  uint32_t x = seed * 0x9E3779B9u ^ counter * 0x85EBCA6Bu;
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return (REAL)(int32_t)((x ^ (x >> 16)) >> 8) * (REAL)5.9604644775390625e-8;
}

static void log_softmax(lanes *theta, lanes *out) {
  lanes top, total;
  LANES { top[r] = theta[0][r]; total[r] = 0; }
  for (int k = 1; k < K; k++) LANES top[r] = theta[k][r] > top[r] ? theta[k][r] : top[r];
  for (int k = 0; k < K; k++) LANES total[r] += EXP(theta[k][r] - top[r]);
  LANES top[r] += LOG(total[r]);
  for (int k = 0; k < K; k++) LANES out[k][r] = theta[k][r] - top[r];
}

static void histogram(lanes *old, lanes *u, lanes *weight) {
  static _Thread_local lanes upto[K];
  lanes running;
  LANES running[r] = 0;
  for (int k = 0; k < K; k++) LANES { running[r] += EXP(old[k][r]); upto[k][r] = running[r]; weight[k][r] = 0; }
  for (int g = 0; g < G; g++) LANES u[g][r] *= running[r];
  if (K <= 64) {
    for (int k = 0; k < K - 1; k++)
      for (int g = 0; g < G; g++) LANES weight[k][r] += u[g][r] < upto[k][r] ? 1 : 0;
    LANES weight[K - 1][r] = G;
    for (int k = K - 1; k > 0; k--) LANES weight[k][r] -= weight[k - 1][r];
  } else {
    for (int g = 0; g < G; g++)
      for (int r = 0; r < W; r++) {
        int low = 0, high = K - 1;
        while (low < high) { int mid = (low + high) / 2; if (u[g][r] < upto[mid][r]) high = mid; else low = mid + 1; }
        weight[low][r] += 1;
      }
  }
}

static void collect(lanes *old, const REAL *table, lanes *u, lanes *weight, lanes *advantage) {
  lanes mean, square, most;
  histogram(old, u, weight);
  LANES { mean[r] = 0; square[r] = 0; most[r] = 0; }
  for (int k = 0; k < K; k++) LANES { mean[r] += weight[k][r] * table[k] / G; most[r] = weight[k][r] > most[r] ? weight[k][r] : most[r]; }
  for (int k = 0; k < K; k++) LANES { REAL d = table[k] - mean[r]; square[r] += weight[k][r] * d * d; }
  LANES square[r] = most[r] == G ? 0 : 1 / SQRT(square[r] / G);
  for (int k = 0; k < K; k++) LANES { advantage[k][r] = (table[k] - mean[r]) * square[r]; weight[k][r] *= (REAL)1 / (Q * G); }
}

static void update(lanes *theta, lanes *m, lanes *v, lanes *old, lanes *weight, lanes *advantage, REAL *clipped,
                   REAL c1, REAL c2, REAL ref, numbers n) {
  static _Thread_local lanes logp[K], pull[K], p[K];
  lanes total;
  log_softmax(theta, logp);
  LANES total[r] = 0;
  for (int k = 0; k < K; k++) LANES {
    REAL a = advantage[k][r], w = weight[k][r], ratio = EXP(logp[k][r] - old[k][r]);
    int held = ((ratio > 1 + n.clip) & (a > 0)) | ((ratio < 1 - n.clip) & (a < 0));
    clipped[r] += held ? w : 0;
    p[k][r] = EXP(logp[k][r]);
    pull[k][r] = w * ((held ? 0 : ratio * a) - n.coef * (1 - EXP(ref - logp[k][r])));
    total[r] += pull[k][r];
  }
  for (int k = 0; k < K; k++) LANES {
    REAL g = p[k][r] * total[r] - pull[k][r];
    m[k][r] = n.b1 * m[k][r] + (1 - n.b1) * g;
    v[k][r] = n.b2 * v[k][r] + (1 - n.b2) * g * g;
    REAL up = m[k][r] * c1 / (SQRT(v[k][r] * c2) + n.eps);
    theta[k][r] -= n.lr * ((m[k][r] == 0 ? 0 : up) + n.decay * theta[k][r]);
  }
}

static void measure(lanes *theta, const REAL *table, REAL ref, lanes *sums) {
  static _Thread_local lanes logp[K];
  log_softmax(theta, logp);
  for (int k = 0; k < K; k++) LANES {
    REAL p = EXP(logp[k][r]);
    sums[0][r] += p * table[k]; sums[1][r] -= p * logp[k][r]; sums[2][r] += p * (logp[k][r] - ref);
  }
}

/* found [iterations, 4, runs], draws [iterations, Q, G, runs] or NULL; runs a multiple of W. */
void sweep(REAL *found, const REAL *table, const REAL *draws, long runs, int iterations, const REAL *given) {
  numbers n; memcpy(&n, given, sizeof n);
  const REAL ref = -LOG((REAL)K);
#pragma omp parallel for schedule(static)
  for (long block = 0; block < runs / W; block++) {
    static _Thread_local lanes theta[Q][K], m[Q][K], v[Q][K], old[Q][K], weight[Q][K], advantage[Q][K], u[G];
    memset(theta, 0, sizeof theta); memset(m, 0, sizeof m); memset(v, 0, sizeof v);
    REAL p1 = 1, p2 = 1;
    for (int i = 0; i < iterations; i++) {
      lanes sums[4]; memset(sums, 0, sizeof sums);
      for (int q = 0; q < Q; q++) {
        log_softmax(theta[q], old[q]);
        for (int g = 0; g < G; g++) {
          if (draws) LANES u[g][r] = draws[((i * Q + q) * (long)G + g) * runs + block * W + r];
          else LANES u[g][r] = uniform(block * W + r, (i * Q + q) * G + g);
        }
        collect(old[q], table + q * K, u, weight[q], advantage[q]);
      }
      for (int step = 0; step < MU; step++) {
        p1 *= n.b1; p2 *= n.b2;
        for (int q = 0; q < Q; q++)
          update(theta[q], m[q], v[q], old[q], weight[q], advantage[q], sums[3], 1 / (1 - p1), 1 / (1 - p2), ref, n);
      }
      for (int q = 0; q < Q; q++) measure(theta[q], table + q * K, ref, sums);
      const REAL scale[4] = {(REAL)1 / Q, (REAL)1 / Q, (REAL)1 / Q, (REAL)1 / MU};
      for (int d = 0; d < 4; d++) LANES found[(i * 4L + d) * runs + block * W + r] = sums[d][r] * scale[d];
    }
  }
}
