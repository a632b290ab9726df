// Half precision: arithmetic is that of float32, rounded when it is stored.
#pragma once
struct __half {
  _Float16 value;
  constexpr __half() : value() {}  // constant, so that shared memory has no guard variable
  template <class T> __half(T x) : value((_Float16)x) {}
  operator float() const { return value; }
};
using half = __half;
struct __half2 { __half x, y; };
using half2 = __half2;
static inline float __half2float(__half x) { return x.value; }
static inline __half __float2half(float x) { return x; }
static inline __half __float2half_rn(float x) { return x; }
static inline __half2 make_half2(__half x, __half y) { return {x, y}; }
static inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
static inline bool __hgt(__half a, __half b) { return a.value > b.value; }
static inline bool __hlt(__half a, __half b) { return a.value < b.value; }
static inline __half __hmax(__half a, __half b) { return std::fmax((float)a, (float)b); }
static inline __half __hmin(__half a, __half b) { return std::fmin((float)a, (float)b); }
static inline __half __habs(__half a) { return std::fabs((float)a); }
static inline __half hexp(__half x) { return expf(x); }
static inline __half hlog(__half x) { return logf(x); }
static inline __half hsqrt(__half x) { return sqrtf(x); }
static inline __half hrsqrt(__half x) { return 1.0f / sqrtf(x); }
static inline __half hfloor(__half x) { return floorf(x); }
static inline __half hceil(__half x) { return ceilf(x); }
static inline __half htrunc(__half x) { return truncf(x); }
static inline __half hrint(__half x) { return rintf(x); }
static inline __half htanh(__half x) { return tanhf(x); }
static inline bool __hisnan(__half x) { return x.value != x.value; }
