// bfloat16, the upper half of a float32: arithmetic is that of float32, rounded when it is stored.
#pragma once
struct __nv_bfloat16 {
  unsigned short bits;
  constexpr __nv_bfloat16() : bits() {}  // as of __half
  template <class T> __nv_bfloat16(T x) {
    float f = (float)x;
    unsigned u;
    memcpy(&u, &f, 4);
    bits = f != f ? u >> 16 | 64 : (u + 0x7fff + (u >> 16 & 1)) >> 16;  // ties to even
  }
  operator float() const {
    unsigned u = (unsigned)bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
};
using nv_bfloat16 = __nv_bfloat16;
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) : x(low), y(high) {}
};
using nv_bfloat162 = __nv_bfloat162;
static inline float __bfloat162float(__nv_bfloat16 x) { return x; }
static inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
static inline bool __hgt(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a > (float)b; }
static inline bool __hlt(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a < (float)b; }
