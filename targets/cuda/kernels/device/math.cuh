// How the threads of a warp multiply: words of weights and what the rows of x become.
//
// Weights are 32-bit words: one float32, two 16-bit floats or four int8 of neighbouring k, in rows
// of a multiple of 4 words.
namespace graphopt {

using Word = unsigned;

// Tensor-core fragments, as PTX lays them out: lane 4g + t holds rows g and g + 8, words t and
// t + 4 of the left operand, columns 2t and 2t + 1 of the result.
struct Left { Word x[4]; };
struct Right { Word x[2]; };

static __device__ __forceinline__ void mma_tf32(float* d, const Left& a, const Right& b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}
static __device__ __forceinline__ void mma_bf16(float* d, const Left& a, const Right& b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}
static __device__ __forceinline__ void mma_fp16(float* d, const Left& a, const Right& b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}
static __device__ __forceinline__ void mma_int8(int* d, const Left& a, const Right& b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}
static __device__ __forceinline__ Word pack_bf16(float low, float high) {
  Word both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
static __device__ __forceinline__ Word pack_fp16(float low, float high) {
  Word both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
static __device__ __forceinline__ float of_fp16(unsigned short half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}
static __device__ __forceinline__ Word round_tf32(float x) {
  Word bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// PACKED values of k make a word of the weights, LEFT words one of x; Element is what those hold.
// Where it SHIFTS, rows of x may begin up to 3 words early; where x is CODED, it holds such words.

// On CUDA cores: lane 8r + c computes rows r, r + 4, … and 4 columns at 4c, 4c + 32, …
struct Fp32 {
  using Sum = float;
  static constexpr int PACKED = 1, LEFT = 1, LEFT_PAD = 4;
  static constexpr bool SHIFTS = false, CODED = false;
  static __device__ __forceinline__ float value(Word word, int) { return __uint_as_float(word); }
  template <class T, int LA, int LB, int SHIFT>
  static __device__ __forceinline__ void multiply(float* acc, const float* a, const Word* words) {
    const float* b = (const float*)words;
    constexpr int ROWS = T::WM / 4, GROUPS = T::WN / 32;
    int lane = threadIdx.x % 32;
    a += lane / 8 * LA;
    b += lane % 8 * 4;
#pragma unroll 4
    for (int k = 0; k < T::PART; k += 4) {
      float4 left[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) left[r] = *(const float4*)(a + r * 4 * LA + k);
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        float4 right[GROUPS];
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) right[g] = *(const float4*)(b + (k + kk) * LB + g * 32);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          float x = kk == 0 ? left[r].x : kk == 1 ? left[r].y : kk == 2 ? left[r].z : left[r].w;
#pragma unroll
          for (int g = 0; g < GROUPS; ++g) {
            float* d = acc + (r * GROUPS + g) * 4;
            d[0] = fmaf(x, right[g].x, d[0]);
            d[1] = fmaf(x, right[g].y, d[1]);
            d[2] = fmaf(x, right[g].z, d[2]);
            d[3] = fmaf(x, right[g].w, d[3]);
          }
        }
      }
    }
  }
};

// On tensor cores, 16 x 8 results and 8 words of k at a time; MATH says how words are made.
template <class MATH>
struct Tensor : MATH {
  using Sum = typename MATH::Sum;
  static constexpr int LEFT_PAD = MATH::LEFT == 1 ? 4 : 8;
  template <class T, int LA, int LB, int SHIFT>
  static __device__ __forceinline__ void multiply(Sum* acc, const float* left_part,
                                                  const Word* b) {
    const auto* a = (const typename MATH::Element*)left_part;
    constexpr int ROWS = T::WM / 16, COLUMNS = T::WN / 8;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    a += g * LA + t * MATH::LEFT + g * SHIFT % 4;
    b += t * LB + g;
#pragma unroll(MATH::UNROLLED)
    for (int k = 0; k < T::PART; k += 8) {
      typename MATH::LeftPart left[ROWS];
      typename MATH::RightPart right[COLUMNS];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) left[i] = MATH::template left<LA>(a + i * 16 * LA + k * MATH::LEFT);
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j)
        right[j] = MATH::right(b[k * LB + j * 8], b[(k + 4) * LB + j * 8]);
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
          MATH::mma(acc + (i * COLUMNS + j) * 4, left[i], right[j]);
    }
  }
};

template <int VALUES> struct Floats {
  using Sum = float;
  using Element = float;
  static constexpr int PACKED = VALUES, LEFT = VALUES;
  static constexpr bool SHIFTS = true, CODED = false;
  static constexpr int UNROLLED = 64;  // steps along k: all of them
};

struct WordMath : Floats<1> {
  static __device__ __forceinline__ float value(Word word, int) { return __uint_as_float(word); }
};

struct Tf32Math : WordMath {
  using LeftPart = Left;
  using RightPart = Right;
  template <int LA> static __device__ __forceinline__ Left left(const float* a) {
    return {{round_tf32(a[0]), round_tf32(a[8 * LA]), round_tf32(a[4]), round_tf32(a[8 * LA + 4])}};
  }
  // Weights were rounded when they were packed.
  static __device__ __forceinline__ Right right(Word low, Word high) { return {{low, high}}; }
  static __device__ __forceinline__ void mma(float* d, const Left& a, const Right& b) {
    mma_tf32(d, a, b);
  }
};

struct Tf32OfBothMath : Tf32Math {
  static __device__ __forceinline__ Right right(Word low, Word high) {
    return {{round_tf32(__uint_as_float(low)), round_tf32(__uint_as_float(high))}};
  }
};

// Each float32 as the sum of two tf32, of whose four products the smallest is left out. Tensor cores
// cut off what they read and what they add up. So the large part is rounded, which leaves all but
// one bit of the rest to the small one, and sums of 8 products are added up outside, where they are
// rounded (Ootomo and Yokota 2022, "Recovering single precision accuracy from tensor cores").
struct Tf32x3Math : WordMath {
  static constexpr int UNROLLED = 2;  // of more, ptxas holds the parts at the same time, and spills
  struct LeftPart { Left big, small; };
  struct RightPart { Right big, small; };
  static __device__ __forceinline__ void split(float x, Word& big, Word& small) {
    big = (__float_as_uint(x) + 0x1000) & 0xffffe000u;  // a NaN that becomes 0 is in the small part
    small = __float_as_uint(x - __uint_as_float(big));
  }
  template <int LA> static __device__ __forceinline__ LeftPart left(const float* a) {
    LeftPart part;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      split(a[i % 2 * 8 * LA + i / 2 * 4], part.big.x[i], part.small.x[i]);
    return part;
  }
  static __device__ __forceinline__ RightPart right(Word low, Word high) {
    RightPart part;
    split(__uint_as_float(low), part.big.x[0], part.small.x[0]);
    split(__uint_as_float(high), part.big.x[1], part.small.x[1]);
    return part;
  }
  static __device__ __forceinline__ void mma(float* d, const LeftPart& a, const RightPart& b) {
    float part[4] = {};
    mma_tf32(part, a.small, b.big);
    mma_tf32(part, a.big, b.small);
    mma_tf32(part, a.big, b.big);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += part[i];
  }
};

struct Bfloat16 {
  static __device__ __forceinline__ float value(Word word, int place) {
    return __uint_as_float(place ? word & 0xffff0000u : word << 16);
  }
  static __device__ __forceinline__ Word pair(const float* a) { return pack_bf16(a[0], a[1]); }
  static __device__ __forceinline__ void mma(float* d, const Left& a, const Right& b) {
    mma_bf16(d, a, b);
  }
};

// Numbers beyond 65504 become infinite.
struct Float16 {
  static __device__ __forceinline__ float value(Word word, int place) {
    return of_fp16(word >> 16 * place);
  }
  static __device__ __forceinline__ Word pair(const float* a) { return pack_fp16(a[0], a[1]); }
  static __device__ __forceinline__ void mma(float* d, const Left& a, const Right& b) {
    mma_fp16(d, a, b);
  }
};

template <class HALF> struct PairMath : Floats<2>, HALF {
  using LeftPart = Left;
  using RightPart = Right;
  template <int LA> static __device__ __forceinline__ Left left(const float* a) {
    return {{HALF::pair(a), HALF::pair(a + 8 * LA), HALF::pair(a + 8), HALF::pair(a + 8 * LA + 8)}};
  }
  static __device__ __forceinline__ Right right(Word low, Word high) { return {{low, high}}; }
};

// Codes of 8 bits on both sides, whose sums are exact. The left ones are there already, in rows as
// `row_codes` makes them; what their zero points are is known to who reads the sums.
struct BytesMath {
  using Sum = int;
  using Element = Word;
  using LeftPart = Left;
  using RightPart = Right;
  static constexpr int PACKED = 4, LEFT = 1;
  static constexpr bool SHIFTS = false, CODED = true;
  static constexpr int UNROLLED = 64;
  template <int LA> static __device__ __forceinline__ Left left(const Word* a) {
    return {{a[0], a[8 * LA], a[4], a[8 * LA + 4]}};
  }
  static __device__ __forceinline__ Right right(Word low, Word high) { return {{low, high}}; }
  static __device__ __forceinline__ void mma(int* d, const Left& a, const Right& b) {
    mma_int8(d, a, b);
  }
};

// x as ONNX rounds it to 8 bits, code = clamp(round(x / scale) + ZERO, 0, 255), less 128, so that
// both operands are signed. Sums start from a last row of the weights, which takes the zero point
// out of them. INVERSE holds the bits of 1 / scale.
template <Word INVERSE, int ZERO> struct Int8Math : BytesMath {
  static constexpr bool CODED = false;
  static __device__ __forceinline__ Word code(float x) {
    int whole = __float2int_rn(x * __uint_as_float(INVERSE));
    return (Word)(max(min(whole, 255 - ZERO), -ZERO) + ZERO - 128) & 255;
  }
  static __device__ __forceinline__ Word codes(float4 x) {
    return code(x.x) | code(x.y) << 8 | code(x.z) << 16 | code(x.w) << 24;
  }
};

using Tf32 = Tensor<Tf32Math>;
using Tf32OfBoth = Tensor<Tf32OfBothMath>;
using Tf32x3 = Tensor<Tf32x3Math>;
using Bf16 = Tensor<PairMath<Bfloat16>>;
using Fp16 = Tensor<PairMath<Float16>>;
using Codes = Tensor<BytesMath>;
template <Word INVERSE, int ZERO> using Int8 = Tensor<Int8Math<INVERSE, ZERO>>;

// Four values of x from k on, of which the first `there` exist; the others are 0.
template <int K> static __device__ __forceinline__ float4 four(const float* from, int there) {
  if constexpr (K % 4 == 0)
    return there > 0 ? __ldg((const float4*)from) : make_float4(0, 0, 0, 0);
  return make_float4(there > 0 ? __ldg(from) : 0, there > 1 ? __ldg(from + 1) : 0,
                     there > 2 ? __ldg(from + 2) : 0, there > 3 ? __ldg(from + 3) : 0);
}

// Where a row of codes has what: four codes a word, each less 128, zeros up to 16 bytes; then the
// distance of two codes as a float32, and what must be added to codes (int32), so that
// x is about (code + shift) * distance.
template <int K> struct CodedRow {
  static constexpr int DISTANCE = (K + 15) / 16 * 4, SHIFT = DISTANCE + 1, PITCH = DISTANCE + 4;
};

// The result that a sum stands for; of rows of codes that is the sum.
template <class MATH, int K, int N>
static __device__ __forceinline__ auto finished(typename MATH::Sum sum, const Word* weights,
                                                int column) {
  constexpr int WORDS = (K + MATH::PACKED - 1) / MATH::PACKED, PITCH = (N + 3) / 4 * 4;
  if constexpr (MATH::PACKED == 4 && !MATH::CODED)
    return (float)(sum + (column < PITCH ? (int)__ldg(weights + WORDS * PITCH + column) : 0));
  else
    return sum;
}

template <class T> static __device__ __forceinline__ void put(void* results, int place, T value) {
  ((T*)results)[place] = value;
}

}  // namespace graphopt
