// Instructions of inline PTX, as functions of their operands. Tensor-core fragments are laid out as
// the PTX ISA says: lane 4g + t holds rows g and g + 8, columns 2t and 2t + 1 of the result.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../block.h"

namespace emulator {

struct Fragments { const unsigned *left, *right; };
inline Fragments fragments[kMaxThreads];

inline float of_bits(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned bits_of(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline unsigned rounded_to_even(unsigned bits, int dropped) {
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fffffff;
  unsigned half = 1u << (dropped - 1);
  return bits + half - 1 + (bits >> dropped & 1);
}

struct Tf32 {
  static constexpr int packed = 1;
  static float value(unsigned word, int) { return of_bits(word & 0xffffe000u); }
};
struct Bf16 {
  static constexpr int packed = 2;
  static float value(unsigned word, int k) { return of_bits(k ? word & 0xffff0000u : word << 16); }
};
struct Fp16 {
  static constexpr int packed = 2;
  static float value(unsigned word, int k) {
    unsigned short bits = word >> 16 * k;
    _Float16 half;
    memcpy(&half, &bits, 2);
    return (float)half;
  }
};

struct Int8 {
  static constexpr int packed = 4;
  static int value(unsigned word, int k) { return (signed char)(word >> 8 * k); }
};

// A sum of tensor cores, as measurements found it (Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical
// behavior of NVIDIA tensor cores"; Khattak and Mikaitis 2025, "Accurate models of NVIDIA tensor
// cores"): products are exact, the largest exponent of any term says where all of them are cut off,
// and so is the sum. Of what differs from GPU to GPU it takes the coarsest from A100 on: one more bit
// than float32 has, and 16 bytes of k at a time.
inline int exponent_of(float x) { return x == 0 ? -1000 : std::max(ilogbf(x), -126); }
inline float toward_zero(double x) {
  float near = (float)x;
  return std::abs((double)near) > std::abs(x) ? nextafterf(near, 0) : near;
}
inline void add_products(float& d, const float* a, const float* b, int count) {
  int largest = exponent_of(d);
  double plain = d;
  for (int k = 0; k < count; ++k) {
    largest = std::max(largest, exponent_of(a[k]) + exponent_of(b[k]));
    plain += (double)a[k] * b[k];
  }
  if (!std::isfinite(plain) || largest < -300) {
    d = (float)plain;
    return;
  }
  constexpr int kBits = 24;  // after the point of the largest exponent
  double sum = trunc(ldexp((double)d, kBits - largest));
  for (int k = 0; k < count; ++k) sum += trunc(ldexp((double)a[k] * b[k], kBits - largest));
  d = toward_zero(ldexp(sum, largest - kBits));
}
inline void add_products(int& d, const int* a, const int* b, int count) {
  for (int k = 0; k < count; ++k) d += a[k] * b[k];
}

// The result of one lane, from the operands that all lanes of its warp have put out.
template <class Type, class Sum>
__attribute__((no_sanitize_thread, noinline)) void multiply(Sum* d) {
  int lane = number_of(current->index) % 32, g = lane / 4, t = lane % 4;
  const Fragments* warp = fragments + number_of(current->index) / 32 * 32;
  constexpr int kCount = 4 * Type::packed;
  for (int i = 0; i < 4; ++i) {
    int column = 2 * t + i % 2;
    for (int half = 0; half < 2; ++half) {
      Sum a[kCount], b[kCount];
      for (int k = 0; k < kCount; ++k) {
        int word = k / Type::packed, place = k % Type::packed;
        a[k] = Type::value(warp[4 * g + word].left[half * 2 + i / 2], place);
        b[k] = Type::value(warp[4 * column + word].right[half], place);
      }
      add_products(d[i], a, b, kCount);
    }
  }
}

template <class Type, class Sum>
__attribute__((no_sanitize_thread)) void mma(Sum& d0, Sum& d1, Sum& d2, Sum& d3, unsigned a0, unsigned a1,
                                             unsigned a2, unsigned a3, unsigned b0, unsigned b1,
                                             int line) {
  const unsigned left[] = {a0, a1, a2, a3}, right[] = {b0, b1};
  Sum d[] = {d0, d1, d2, d3};
  fragments[number_of(current->index)] = {left, right};
  shuffle(0xffffffffu, 0, lane(), line);
  multiply<Type>(d);
  shuffle(0xffffffffu, 0, lane(), line);  // until now others may read the operands
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}

}  // namespace emulator

#define PTX_mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(...) \
  emulator::mma<emulator::Tf32>(__VA_ARGS__, __LINE__)
#define PTX_mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(...) \
  emulator::mma<emulator::Bf16>(__VA_ARGS__, __LINE__)
#define PTX_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(...) \
  emulator::mma<emulator::Fp16>(__VA_ARGS__, __LINE__)
#define PTX_mma_sync_aligned_m16n8k32_row_col_s32_s8_s8_s32(...) \
  emulator::mma<emulator::Int8>(__VA_ARGS__, __LINE__)

static inline void PTX_cvt_rna_tf32_f32(unsigned& to, float from) {
  unsigned bits = emulator::bits_of(from);
  bool finite = (bits & 0x7f800000) != 0x7f800000;
  to = finite ? (bits + 0x1000) & 0xffffe000u : bits;
}
static inline void PTX_cvt_rn_bf16x2_f32(unsigned& to, float high, float low) {
  using namespace emulator;
  to = (rounded_to_even(bits_of(high), 16) & 0xffff0000u) | rounded_to_even(bits_of(low), 16) >> 16;
}
static inline void PTX_cvt_f32_f16(float& to, unsigned short from) {
  to = emulator::Fp16::value(from, 0);
}
static inline void PTX_cvt_rn_f16x2_f32(unsigned& to, float high, float low) {
  _Float16 both[] = {(_Float16)low, (_Float16)high};
  memcpy(&to, both, 4);
}
