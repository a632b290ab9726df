// Matrix products of float32 rows and packed constant weights, one block of threads a tile.
//
// The result of a tile is left in the registers of its threads; the kernel around it, which TVM
// generates, adds the bias, applies the activation and stores. Weights are 32-bit words: one
// float32, two 16-bit floats or four int8 of neighbouring k, in rows of a multiple of 4 words.
// Both operands come through shared memory in a ring of stages that are filled asynchronously.
#include <cuda_pipeline.h>

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
static __device__ __forceinline__ Word pack_bf16(float low, float high) {
  Word both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
static __device__ __forceinline__ Word round_tf32(float x) {
  Word bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// A tile of BM x BN results from stages of DEPTH words of k; each warp computes WM x WN of them in
// one of SLICES parts of every stage.
template <int BM_, int BN_, int DEPTH_, int WM_, int WN_, int STAGES_, int SLICES_>
struct Tile {
  static constexpr int BM = BM_, BN = BN_, DEPTH = DEPTH_, WM = WM_, WN = WN_;
  static constexpr int STAGES = STAGES_, SLICES = SLICES_;
  static constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN;
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N * SLICES;
  static constexpr int PER_THREAD = WM * WN / 32;
  static constexpr int PART = DEPTH / SLICES;  // words of k that a warp computes of each stage
};

// ---------------------------------------------------------------- how a warp multiplies

// On CUDA cores: lane 8r + c computes rows r, r + 4, … and 4 columns at 4c, 4c + 32, …
struct Fp32 {
  static constexpr int PACKED = 1, LEFT_PAD = 4;
  static constexpr bool SHIFTS = false;
  template <class T, int LA, int LB, int SHIFT>
  static __device__ __forceinline__ void multiply(float* acc, const float* a, const Word* words) {
    const float* b = (const float*)words;
    constexpr int ROWS = T::WM / 4, GROUPS = T::WN / 32;
    int lane = threadIdx.x % 32;
    a += lane / 8 * LA;
    b += lane % 8 * 4;
#pragma unroll
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

// On tensor cores, 16 x 8 results and 8 words of k at a time; MATH says how words are made. They cut
// sums off instead of rounding them, so where it ROUNDS only those of one stage are formed there.
template <class MATH>
struct Tensor {
  static constexpr int PACKED = MATH::PACKED, LEFT_PAD = MATH::PACKED == 1 ? 4 : 8;
  static constexpr bool SHIFTS = true;
  template <class T, int LA, int LB, int SHIFT>
  static __device__ __forceinline__ void multiply(float* acc, const float* a, const Word* b) {
    constexpr int ROWS = T::WM / 16, COLUMNS = T::WN / 8;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    a += g * LA + t * PACKED + g * SHIFT % 4;
    b += t * LB + g;
    float part[MATH::ROUNDS ? T::PER_THREAD : 1] = {};
    float* sum = MATH::ROUNDS ? part : acc;
#pragma unroll
    for (int k = 0; k < T::PART; k += 8) {
      typename MATH::LeftPart left[ROWS];
      typename MATH::RightPart right[COLUMNS];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) left[i] = MATH::template left<LA>(a + i * 16 * LA + k * PACKED);
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j)
        right[j] = MATH::right(b[k * LB + j * 8], b[(k + 4) * LB + j * 8]);
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
          MATH::mma(sum + (i * COLUMNS + j) * 4, left[i], right[j]);
    }
    if constexpr (MATH::ROUNDS)
#pragma unroll
      for (int i = 0; i < T::PER_THREAD; ++i) acc[i] += part[i];
  }
};

struct Tf32Math {
  static constexpr int PACKED = 1;
  static constexpr bool ROUNDS = false;
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

// Each float32 as the sum of two tf32, of whose four products the smallest is left out.
struct Tf32x3Math {
  static constexpr int PACKED = 1;
  static constexpr bool ROUNDS = true;
  struct LeftPart { Left big, small; };
  struct RightPart { Right big, small; };
  static __device__ __forceinline__ void split(float x, Word& big, Word& small) {
    big = __float_as_uint(x) & 0xffffe000u;  // the bits that tensor cores read
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
    mma_tf32(d, a.small, b.big);
    mma_tf32(d, a.big, b.small);
    mma_tf32(d, a.big, b.big);
  }
};

struct Bf16Math {
  static constexpr int PACKED = 2;
  static constexpr bool ROUNDS = false;
  using LeftPart = Left;
  using RightPart = Right;
  static __device__ __forceinline__ Word pair(const float* a) {
    return pack_bf16(a[0], a[1]);
  }
  template <int LA> static __device__ __forceinline__ Left left(const float* a) {
    return {{pair(a), pair(a + 8 * LA), pair(a + 8), pair(a + 8 * LA + 8)}};
  }
  static __device__ __forceinline__ Right right(Word low, Word high) { return {{low, high}}; }
  static __device__ __forceinline__ void mma(float* d, const Left& a, const Right& b) {
    mma_bf16(d, a, b);
  }
};

using Tf32 = Tensor<Tf32Math>;
using Tf32x3 = Tensor<Tf32x3Math>;
using Bf16 = Tensor<Bf16Math>;

// ---------------------------------------------------------------- a tile

template <class T, class MATH>
struct Stage {
  static constexpr int LA = T::DEPTH * MATH::PACKED + MATH::LEFT_PAD;  // words from row to row
  static constexpr int LB = T::BN + 8;
  static constexpr int LEFT = T::BM * LA;
  static constexpr int WORDS = LEFT + T::DEPTH * LB;
  static constexpr int REDUCED = (T::SLICES - 1) * T::BM * T::BN;
  static constexpr int BYTES = 4 * (WORDS * T::STAGES > REDUCED ? WORDS * T::STAGES : REDUCED);
};

// Starts to copy a stage: x[row:, k:] and weights[k:, column:], zeros beyond their ends. Where rows
// of x do not begin at multiples of 16 bytes, a row of the stage begins up to 3 words early.
template <class T, class MATH, int K, int N>
__device__ __forceinline__ void fill(float* stage, const float* x, const Word* weights, int m,
                                     int row, int column, int word) {
  using S = Stage<T, MATH>;
  constexpr int P = MATH::PACKED, SHIFT = MATH::SHIFTS ? K % 4 : 0;
  constexpr int VECTOR = MATH::SHIFTS || K % 4 == 0 ? 4 : 1;
  constexpr int LINE = T::DEPTH * P / VECTOR + (SHIFT != 0);
#pragma unroll
  for (int i = threadIdx.x; i < T::BM * LINE; i += T::THREADS) {
    int r = i / LINE, c = i % LINE * VECTOR, k = word * P + c - r * SHIFT % 4;
    int there = row + r < m ? max(0, min(VECTOR, K - k)) : 0;
    const float* from = there ? x + (long long)(row + r) * K + k : x;
    __pipeline_memcpy_async(stage + r * S::LA + c, from, VECTOR * 4, (VECTOR - there) * 4);
  }
  constexpr int WIDE = T::BN / 4, WORDS = (K + P - 1) / P, PITCH = (N + 3) / 4 * 4;
  Word* right = (Word*)stage + S::LEFT;
#pragma unroll
  for (int i = threadIdx.x; i < T::DEPTH * WIDE; i += T::THREADS) {
    int k = i / WIDE, c = i % WIDE * 4;
    bool there = word + k < WORDS && column + c < PITCH;
    const Word* from = there ? weights + (long long)(word + k) * PITCH + column + c : weights;
    __pipeline_memcpy_async(right + k * S::LB + c, from, 16, there ? 0 : 16);
  }
}

// acc = the elements of (x[m, K] @ weights[K, N])[row:, column:] that are this thread's.
template <class T, class MATH, int K, int N, class VECTOR>
__device__ __forceinline__ void gemm_tile(VECTOR* results, float* shared, const float* x,
                                          const Word* weights, int m, int row, int column) {
  using S = Stage<T, MATH>;
  float* acc = (float*)results;
  constexpr int STEPS = (K + T::DEPTH * MATH::PACKED - 1) / (T::DEPTH * MATH::PACKED);
  int warp = threadIdx.x / 32, slice = warp / (T::WARPS_M * T::WARPS_N);
  int warp_row = warp / T::WARPS_N % T::WARPS_M * T::WM, warp_column = warp % T::WARPS_N * T::WN;
#pragma unroll
  for (int i = 0; i < T::PER_THREAD; ++i) acc[i] = 0;
#pragma unroll
  for (int s = 0; s < T::STAGES - 1; ++s) {
    if (s < STEPS) fill<T, MATH, K, N>(shared + s * S::WORDS, x, weights, m, row, column,
                                       s * T::DEPTH);
    __pipeline_commit();
  }
  int present = 0, next = T::STAGES - 1;
  for (int step = 0; step < STEPS; ++step) {
    __pipeline_wait_prior(T::STAGES - 2);
    __syncthreads();  // the stage is there for all, and the one to fill is read no more
    if (step + T::STAGES - 1 < STEPS)
      fill<T, MATH, K, N>(shared + next * S::WORDS, x, weights, m, row, column,
                          (step + T::STAGES - 1) * T::DEPTH);
    __pipeline_commit();
    const float* stage = shared + present * S::WORDS;
    MATH::template multiply<T, S::LA, S::LB, K % 4>(
        acc, stage + warp_row * S::LA + slice * T::PART * MATH::PACKED,
        (const Word*)stage + S::LEFT + slice * T::PART * S::LB + warp_column);
    present = present + 1 == T::STAGES ? 0 : present + 1;
    next = next + 1 == T::STAGES ? 0 : next + 1;
  }
  if constexpr (T::SLICES > 1) {
    constexpr int OF_SLICE = T::THREADS / T::SLICES;
    int mine = threadIdx.x % OF_SLICE;
    __pipeline_wait_prior(0);
    __syncthreads();
    if (slice > 0)
#pragma unroll
      for (int i = 0; i < T::PER_THREAD; ++i)
        shared[((slice - 1) * T::PER_THREAD + i) * OF_SLICE + mine] = acc[i];
    __syncthreads();
    if (slice == 0)
      for (int s = 0; s < T::SLICES - 1; ++s)
#pragma unroll
        for (int i = 0; i < T::PER_THREAD; ++i)
          acc[i] += shared[(s * T::PER_THREAD + i) * OF_SLICE + mine];
  }
}

// ---------------------------------------------------------------- few rows

template <int PACKED> static __device__ __forceinline__ float unpacked(Word word, int place) {
  if constexpr (PACKED == 1) return __uint_as_float(word);
  return __uint_as_float(place ? word & 0xffff0000u : word << 16);  // bfloat16
}

// sum[r][c] += the products of rows [k, k + COUNT) of four columns of the weights.
template <int ROWS, int COUNT, int PACKED, int K, int PITCH>
__device__ __forceinline__ void add_products(float (*sum)[4], const float* const* left,
                                             const uint4* right, int k) {
  float w[COUNT][4];
#pragma unroll
  for (int p = 0; p < COUNT; ++p) {
    uint4 four = __ldg(right + (k + p) / PACKED * PITCH);
    w[p][0] = unpacked<PACKED>(four.x, (k + p) % PACKED);
    w[p][1] = unpacked<PACKED>(four.y, (k + p) % PACKED);
    w[p][2] = unpacked<PACKED>(four.z, (k + p) % PACKED);
    w[p][3] = unpacked<PACKED>(four.w, (k + p) % PACKED);
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    float v[COUNT];
    if constexpr (COUNT == 4 && K % 4 == 0)
      *(float4*)v = __ldg((const float4*)(left[r] + k));
    else
#pragma unroll
      for (int p = 0; p < COUNT; ++p) v[p] = __ldg(left[r] + k + p);
#pragma unroll
    for (int p = 0; p < COUNT; ++p)
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[r][c] = fmaf(v[p], w[p][c], sum[r][c]);
  }
}

// Lanes of a block share out COLUMNS, 4 to each, and beyond those the rows of the weights.
// acc = the elements of (x[m, K] @ weights[K, N])[row : row + ROWS, column : column + COLUMNS] that
// are this thread's: number threadIdx.x + i * THREADS in row-major order is its i-th.
template <int ROWS, int COLUMNS, int THREADS, int PACKED, int K, int N, class VECTOR>
__device__ __forceinline__ void few_rows(VECTOR* results, float* shared, const float* x,
                                         const Word* weights, int m, int row, int column) {
  constexpr int ACROSS = COLUMNS / 4, DOWN = THREADS / ACROSS, PITCH = (N + 3) / 4;
  constexpr int WARPS = THREADS / 32, TILE = ROWS * COLUMNS, WHOLE = K / 4 * 4;
  float* acc = (float*)results;
  int across = threadIdx.x % ACROSS, down = threadIdx.x / ACROSS, lane = threadIdx.x % 32;
  float sum[ROWS][4];
  const float* left[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    left[r] = x + (long long)(row + r < m ? row + r : m - 1) * K;
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[r][c] = 0;
  }
  if (column + across * 4 < N) {
    const uint4* right = (const uint4*)(weights + column) + across;
#pragma unroll 2
    for (int k = down * 4; k < WHOLE; k += DOWN * 4)
      add_products<ROWS, 4, PACKED, K, PITCH>(sum, left, right, k);
    if (down < K - WHOLE) add_products<ROWS, 1, PACKED, K, PITCH>(sum, left, right, WHOLE + down);
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int step = ACROSS; step < 32; step *= 2)
        sum[r][c] += __shfl_xor_sync(0xffffffffu, sum[r][c], step, 32);
      if (lane < ACROSS) shared[threadIdx.x / 32 * TILE + r * COLUMNS + across * 4 + c] = sum[r][c];
    }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < (TILE + THREADS - 1) / THREADS; ++i) {
    int element = threadIdx.x + i * THREADS;
    acc[i] = 0;
    if (element < TILE)
#pragma unroll
      for (int w = 0; w < WARPS; ++w) acc[i] += shared[w * TILE + element];
  }
}

// A warp a row of at most 4 results, its lanes sharing out k. acc[0] = the result of column lane.
template <int PACKED, int K, int N, class VECTOR>
__device__ __forceinline__ void row_dots(VECTOR* results, const float* x, const Word* weights,
                                         int m, int row) {
  int lane = threadIdx.x % 32;
  row += threadIdx.x / 32;
  const float* left = x + (long long)(row < m ? row : m - 1) * K;
  float sum[4] = {0, 0, 0, 0};
#pragma unroll 4
  for (int k = lane; k < K; k += 32) {
    uint4 four = __ldg((const uint4*)weights + k / PACKED);
    float v = __ldg(left + k);
    sum[0] = fmaf(v, unpacked<PACKED>(four.x, k % PACKED), sum[0]);
    if (N > 1) sum[1] = fmaf(v, unpacked<PACKED>(four.y, k % PACKED), sum[1]);
    if (N > 2) sum[2] = fmaf(v, unpacked<PACKED>(four.z, k % PACKED), sum[2]);
    if (N > 3) sum[3] = fmaf(v, unpacked<PACKED>(four.w, k % PACKED), sum[3]);
  }
#pragma unroll
  for (int c = 0; c < N; ++c)
#pragma unroll
    for (int step = 16; step; step /= 2) sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], step, 32);
  float* acc = (float*)results;
  acc[0] = lane == 0 ? sum[0] : lane == 1 ? sum[1] : lane == 2 ? sum[2] : sum[3];
}

}  // namespace graphopt
