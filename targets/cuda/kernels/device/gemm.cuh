// Matrix products of float32 rows and packed constant weights, one block of threads a tile.
//
// The result of a tile is left in the registers of its threads; the kernel around it, which TVM
// generates, adds the bias, applies the activation and stores. Both operands come through shared
// memory in a ring of stages.
#include <cuda_pipeline.h>

#include <type_traits>

namespace graphopt {

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

template <class T, class MATH>
struct Stage {
  static constexpr int LA = T::DEPTH * MATH::LEFT + MATH::LEFT_PAD;  // words from row to row
  static constexpr int LB = T::BN + 8;
  static constexpr int LEFT = T::BM * LA;
  static constexpr int WORDS = LEFT + T::DEPTH * LB;
};

// Starts to copy BYTES to shared memory, of which the first `there` exist; the others become 0. One
// instruction, where `__pipeline_memcpy_async` branches to one for each number of zeros.
template <int BYTES>
static __device__ __forceinline__ void copy_async(void* to, const void* from, int there) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  size_t place = __cvta_generic_to_shared(to);
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 : : "l"(place), "l"(from), "r"(there) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;"
                 : : "l"(place), "l"(from), "r"(there), "n"(BYTES) : "memory");
  }
#else
  __pipeline_memcpy_async(to, from, BYTES, BYTES - there);
#endif
}

// The left operand of a stage: x[row:, k:], zeros beyond its ends. Floats are copied
// asynchronously. Where rows of x do not begin at multiples of 16 bytes, those of the stage begin
// up to 3 words early. Words of codes are copied so too, P being 1.
template <class T, class MATH, int K, int P = MATH::PACKED>
struct FloatsOf {
  __device__ __forceinline__ void begin(float* stage, const float* x, int m, int row, int word) {
    using S = Stage<T, MATH>;
    constexpr int SHIFT = MATH::SHIFTS ? K % 4 : 0;
    constexpr int VECTOR = MATH::SHIFTS || K % 4 == 0 ? 4 : 1;
    constexpr int LINE = T::DEPTH * P / VECTOR + (SHIFT != 0);
    const float* first = x + (long long)row * K;  // from which 32-bit offsets suffice
#pragma unroll
    for (int i = threadIdx.x; i < T::BM * LINE; i += T::THREADS) {
      int r = i / LINE, c = i % LINE * VECTOR, k = word * P + c - r * SHIFT % 4;
      int there = row + r < m ? max(0, min(VECTOR, K - k)) : 0;
      const float* from = there ? first + (r * K + k) : x;
      copy_async<VECTOR * 4>(stage + r * S::LA + c, from, there * 4);
    }
  }
  __device__ __forceinline__ void end(float*) {}
};

// Codes are made on the way: x is read before a stage is multiplied, its codes are written after.
template <class T, class MATH, int K>
struct CodesOf {
  static constexpr int ALL = T::BM * T::DEPTH, EACH = (ALL + T::THREADS - 1) / T::THREADS;
  float4 held[EACH];
  __device__ __forceinline__ void begin(float*, const float* x, int m, int row, int word) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      int at = threadIdx.x + i * T::THREADS, r = row + at / T::DEPTH;
      int k = (word + at % T::DEPTH) * 4;
      held[i] = four<K>(x + (long long)r * K + k, at < ALL && r < m ? K - k : 0);
    }
  }
  __device__ __forceinline__ void end(float* stage) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      int at = threadIdx.x + i * T::THREADS;
      if (ALL % T::THREADS == 0 || at < ALL)
        ((Word*)stage)[at / T::DEPTH * Stage<T, MATH>::LA + at % T::DEPTH] = MATH::codes(held[i]);
    }
  }
};

template <class T, class MATH, int K>
using LeftOf = std::conditional_t<
    MATH::CODED, FloatsOf<T, MATH, CodedRow<K>::PITCH, 1>,
    std::conditional_t<MATH::PACKED == 4, CodesOf<T, MATH, K>, FloatsOf<T, MATH, K>>>;

// Starts to copy the right operand of a stage: weights[k:, column:], zeros beyond their ends.
template <class T, class MATH, int K, int N>
__device__ __forceinline__ void fill_right(float* stage, const Word* weights, int column,
                                           int word) {
  using S = Stage<T, MATH>;
  constexpr int P = MATH::PACKED;
  constexpr int WIDE = T::BN / 4, WORDS = (K + P - 1) / P, PITCH = (N + 3) / 4 * 4;
  Word* right = (Word*)stage + S::LEFT;
  const Word* first = weights + (long long)word * PITCH + column;
#pragma unroll
  for (int i = threadIdx.x; i < T::DEPTH * WIDE; i += T::THREADS) {
    int k = i / WIDE, c = i % WIDE * 4;
    bool there = word + k < WORDS && column + c < PITCH;
    const Word* from = there ? first + (k * PITCH + c) : weights;
    copy_async<16>(right + k * S::LB + c, from, there ? 16 : 0);
  }
}

// What `gemm_tile` multiplies: x and constant weights.
template <class T, class MATH, int K, int N>
struct Weighted {
  static constexpr int SHIFT = MATH::SHIFTS ? K % 4 : 0;
  const float* x;
  const Word* weights;
  int m, row, column;
  LeftOf<T, MATH, K> left = {};
  // `begin` asks for a stage before another one is multiplied, `end` completes it afterwards.
  __device__ __forceinline__ void begin(float* stage, int word) {
    left.begin(stage, x, m, row, word);
    fill_right<T, MATH, K, N>(stage, weights, column, word);
  }
  __device__ __forceinline__ void end(float* stage) { left.end(stage); }
};

// acc = the sums of this thread over `steps` stages; of several slices, those of the first have all.
template <class T, class MATH, class SOURCE>
__device__ __forceinline__ void multiply_stages(typename MATH::Sum* acc, float* shared,
                                                SOURCE& source, int steps) {
  using S = Stage<T, MATH>;
  int warp = threadIdx.x / 32, slice = warp / (T::WARPS_M * T::WARPS_N);
  int warp_row = warp / T::WARPS_N % T::WARPS_M * T::WM, warp_column = warp % T::WARPS_N * T::WN;
#pragma unroll
  for (int i = 0; i < T::PER_THREAD; ++i) acc[i] = 0;
#pragma unroll
  for (int s = 0; s < T::STAGES - 1; ++s) {
    if (s < steps) {
      source.begin(shared + s * S::WORDS, s * T::DEPTH);
      source.end(shared + s * S::WORDS);
    }
    __pipeline_commit();
  }
  int present = 0, next = T::STAGES - 1;
  for (int step = 0; step < steps; ++step) {
    __pipeline_wait_prior(T::STAGES - 2);
    __syncthreads();  // the stage is there for all, and the one to fill is read no more
    bool more = step + T::STAGES - 1 < steps;
    if (more) source.begin(shared + next * S::WORDS, (step + T::STAGES - 1) * T::DEPTH);
    __pipeline_commit();
    const float* stage = shared + present * S::WORDS;
    MATH::template multiply<T, S::LA, S::LB, SOURCE::SHIFT>(
        acc, stage + warp_row * S::LA + slice * T::PART * MATH::LEFT,
        (const Word*)stage + S::LEFT + slice * T::PART * S::LB + warp_column);
    if (more) source.end(shared + next * S::WORDS);
    present = present + 1 == T::STAGES ? 0 : present + 1;
    next = next + 1 == T::STAGES ? 0 : next + 1;
  }
  if constexpr (T::SLICES > 1) {
    constexpr int OF_SLICE = T::THREADS / T::SLICES;
    auto* others = (typename MATH::Sum*)shared;
    int mine = threadIdx.x % OF_SLICE;
    __pipeline_wait_prior(0);
    __syncthreads();
    if (slice > 0)
#pragma unroll
      for (int i = 0; i < T::PER_THREAD; ++i)
        others[((slice - 1) * T::PER_THREAD + i) * OF_SLICE + mine] = acc[i];
    __syncthreads();
    if (slice == 0)
      for (int s = 0; s < T::SLICES - 1; ++s)
#pragma unroll
        for (int i = 0; i < T::PER_THREAD; ++i)
          acc[i] += others[(s * T::PER_THREAD + i) * OF_SLICE + mine];
  }
}

// results = the elements of (x[m, K] @ weights[K, N])[row:, column:] that are this thread's.
template <class T, class MATH, int K, int N, class VECTOR>
__device__ __forceinline__ void gemm_tile(VECTOR* results, float* shared, const void* x,
                                          const Word* weights, int m, int row, int column) {
  typename MATH::Sum acc[T::PER_THREAD];
  Weighted<T, MATH, K, N> source{(const float*)x, weights, m, row, column};
  constexpr int DEPTH = T::DEPTH * MATH::PACKED;
  multiply_stages<T, MATH>(acc, shared, source, (K + DEPTH - 1) / DEPTH);
  // Where the results of tensor cores are.
  int own = column + threadIdx.x / 32 % T::WARPS_N * T::WN + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < T::PER_THREAD; ++i)
    put(results, i, finished<MATH, K, N>(acc[i], weights, own + i / 4 % (T::WN / 8) * 8 + i % 2));
}

}  // namespace graphopt
