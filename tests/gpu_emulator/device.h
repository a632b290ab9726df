// The parts of CUDA C that TVM generates, as C++: included before the generated source.
#pragma once
#include <cmath>
#include <limits>

#include "launch.h"
#include "include/ptx.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__ static
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("emulator_shared")))
#define CUDART_INF_F INFINITY
#define CUDART_INF ((double)INFINITY)
#define CUDART_NAN_F NAN

#define VECTORS(T, N)                                                                     \
  struct N##2 { T x, y; }; struct N##3 { T x, y, z; }; struct N##4 { T x, y, z, w; };     \
  static inline N##2 make_##N##2(T a, T b) { return {a, b}; }                             \
  static inline N##3 make_##N##3(T a, T b, T c) { return {a, b, c}; }                     \
  static inline N##4 make_##N##4(T a, T b, T c, T d) { return {a, b, c, d}; }
VECTORS(float, float) VECTORS(double, double) VECTORS(int, int) VECTORS(long long, longlong)
VECTORS(signed char, char) VECTORS(unsigned char, uchar) VECTORS(short, short)
VECTORS(unsigned short, ushort) VECTORS(unsigned long long, ulonglong)
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
static inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }
static inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) {
  return {a, b, c, d};
}

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define warpSize 32
#define __syncthreads() emulator::barrier(__LINE__)
#define __syncwarp(...) emulator::shuffle(0xffffffffu, 0, emulator::lane(), __LINE__)
#define __activemask() emulator::active_lanes(__LINE__)

namespace emulator {
inline int in_segment(int source, int width) {
  int first = lane() / width * width;
  return source >= first && source < first + width ? source : lane();
}
}  // namespace emulator
#define __shfl_sync(m, v, s, w) \
  emulator::shuffle(m, v, emulator::lane() / (w) * (w) + ((s) & ((w) - 1)), __LINE__)
#define SHUFFLE(m, v, s, w) emulator::shuffle(m, v, emulator::in_segment(s, w), __LINE__)
#define __shfl_down_sync(m, v, d, w) SHUFFLE(m, v, emulator::lane() + (int)(d), w)
#define __shfl_up_sync(m, v, d, w) SHUFFLE(m, v, emulator::lane() - (int)(d), w)
#define __shfl_xor_sync(m, v, d, w) SHUFFLE(m, v, emulator::lane() ^ (int)(d), w)

#define __expf expf
#define __logf logf
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class A, class B> static inline auto max(A a, B b) -> std::common_type_t<A, B> {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return std::fmax(a, b);
  else return (C)a > (C)b ? a : b;
}
template <class A, class B> static inline auto min(A a, B b) -> std::common_type_t<A, B> {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return std::fmin(a, b);
  else return (C)a < (C)b ? a : b;
}
#define ATOMIC(name, result)                                                         \
  template <class T>                                                                 \
  __attribute__((no_sanitize_thread, noinline)) static T name(T* p, T v) {           \
    T old = *p;                                                                      \
    *p = result;                                                                     \
    return old;                                                                      \
  }
ATOMIC(atomicAdd, old + v) ATOMIC(atomicMax, old > v ? old : v) ATOMIC(atomicMin, old < v ? old : v)
static inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
static inline float __uint_as_float(unsigned i) { float f; memcpy(&f, &i, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned i; memcpy(&i, &f, 4); return i; }
static inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
static inline int __float2int_rn(float x) {
  if (x != x) return 0;
  return x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : (int)nearbyintf(x);
}
static inline int __dp4a(int a, int b, int sum) {
  for (int k = 0; k < 32; k += 8) sum += (signed char)(a >> k) * (signed char)(b >> k);
  return sum;
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
