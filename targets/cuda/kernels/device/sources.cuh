// Other operands of tiles than x and constant weights. MATH has whole words: one float each.
namespace graphopt {

// Computed matrices a[m, k] and b[k, n], copied VA and VB floats at a time.
template <class T, class MATH, int VA, int VB>
struct Computed {
  static constexpr int SHIFT = 0;
  using S = Stage<T, MATH>;
  const float *a, *b;
  int m, n, k, row, column;
  __device__ __forceinline__ void begin(float* stage, int word) {
    constexpr int LINE = T::DEPTH / VA, WIDE = T::BN / VB;
#pragma unroll
    for (int i = threadIdx.x; i < T::BM * LINE; i += T::THREADS) {
      int r = row + i / LINE, at = word + i % LINE * VA;
      bool there = r < m && at < k;
      copy_async<VA * 4>(stage + i / LINE * S::LA + i % LINE * VA,
                         there ? a + (long long)r * k + at : a, there ? VA * 4 : 0);
    }
#pragma unroll
    for (int i = threadIdx.x; i < T::DEPTH * WIDE; i += T::THREADS) {
      int at = word + i / WIDE, c = column + i % WIDE * VB;
      bool there = at < k && c < n;
      copy_async<VB * 4>(stage + S::LEFT + i / WIDE * S::LB + i % WIDE * VB,
                         there ? b + (long long)at * n + c : b, there ? VB * 4 : 0);
    }
  }
  __device__ __forceinline__ void end(float*) {}
};

// results = the elements of (a[m, k] @ b[k, n])[row:, column:] that are this thread's.
template <class T, class MATH, int VA, int VB, class VECTOR>
__device__ __forceinline__ void computed_tile(VECTOR* results, float* shared, const float* a,
                                              const float* b, int m, int n, int k, int row,
                                              int column) {
  Computed<T, MATH, VA, VB> source{a, b, m, n, k, row, column};
  multiply_stages<T, MATH>((float*)results, shared, source, (k + T::DEPTH - 1) / T::DEPTH);
}

// Row s * D + e of the left operand holds the products x[s, i, e] * y[s, j, e] of K pairs i, j.
template <class T, class MATH, int H, int M, int D, int K, int N>
struct Products {
  static constexpr int SHIFT = 0;
  static constexpr int ALL = T::BM * T::DEPTH, EACH = (ALL + T::THREADS - 1) / T::THREADS;
  using S = Stage<T, MATH>;
  const float *x, *y;
  const Word* weights;
  const int* pairs;
  int rows, row, column;
  float held[EACH];
  __device__ __forceinline__ void begin(float* stage, int word) {
    fill_right<T, MATH, K, N>(stage, weights, column, word);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      int at = threadIdx.x + i * T::THREADS, r = row + at % T::BM, p = word + at / T::BM;
      held[i] = 0;
      if (at < ALL && r < rows && p < K) {
        int pair = __ldg(pairs + p), e = r % D;
        long long s = r / D;
        held[i] = __ldg(x + (s * H + pair / M) * D + e) * __ldg(y + (s * M + pair % M) * D + e);
      }
    }
  }
  __device__ __forceinline__ void end(float* stage) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      int at = threadIdx.x + i * T::THREADS;
      if (at < ALL) stage[at % T::BM * S::LA + at / T::BM] = held[i];
    }
  }
};

// results = the elements of (products[rows, K] @ weights[K, N])[row:, column:] of this thread.
template <class T, class MATH, int H, int M, int D, int K, int N, class VECTOR>
__device__ __forceinline__ void products_tile(VECTOR* results, float* shared, const float* x,
                                              const float* y, const Word* weights,
                                              const int* pairs, int rows, int row, int column) {
  Products<T, MATH, H, M, D, K, N> source{x, y, weights, pairs, rows, row, column};
  multiply_stages<T, MATH>((float*)results, shared, source, (K + T::DEPTH - 1) / T::DEPTH);
}

}  // namespace graphopt
