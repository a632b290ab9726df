// Products of few rows of x, or of few columns of weights: what takes the time is to read them.
namespace graphopt {

// sum[r][c] += the products of rows [k, k + COUNT) of four columns of the weights.
template <int ROWS, int COUNT, class MATH, int K, int PITCH>
__device__ __forceinline__ void add_products(float (*sum)[4], const float* first,
                                             const int* left, const uint4* right, int k) {
  constexpr int PACKED = MATH::PACKED;
  float w[COUNT][4];
#pragma unroll
  for (int p = 0; p < COUNT; ++p) {
    uint4 four = __ldg(right + (k + p) / PACKED * PITCH);
    w[p][0] = MATH::value(four.x, (k + p) % PACKED);
    w[p][1] = MATH::value(four.y, (k + p) % PACKED);
    w[p][2] = MATH::value(four.z, (k + p) % PACKED);
    w[p][3] = MATH::value(four.w, (k + p) % PACKED);
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    float v[COUNT];
    if constexpr (COUNT == 4 && K % 4 == 0)
      *(float4*)v = __ldg((const float4*)(first + left[r] + k));
    else
#pragma unroll
      for (int p = 0; p < COUNT; ++p) v[p] = __ldg(first + left[r] + k + p);
#pragma unroll
    for (int p = 0; p < COUNT; ++p)
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[r][c] = fmaf(v[p], w[p][c], sum[r][c]);
  }
}

// Floats from one row of x to the next; of codes, words.
template <class MATH, int K>
constexpr int STRIDE = MATH::CODED ? CodedRow<K>::PITCH : K;

// The same for a word of k, whose weights are codes and which x is rounded to on the way.
template <int ROWS, class MATH, int K, int PITCH>
__device__ __forceinline__ void add_codes(int (*sum)[4], const float* first,
                                          const int* left, const uint4* right, int word) {
  uint4 w = __ldg(right + word * PITCH);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    int x;
    if constexpr (MATH::CODED)
      x = __ldg((const int*)first + left[r] + word);
    else
      x = MATH::codes(four<K>(first + left[r] + word * 4, K - word * 4));
    sum[r][0] = __dp4a(x, (int)w.x, sum[r][0]);
    sum[r][1] = __dp4a(x, (int)w.y, sum[r][1]);
    sum[r][2] = __dp4a(x, (int)w.z, sum[r][2]);
    sum[r][3] = __dp4a(x, (int)w.w, sum[r][3]);
  }
}

// Lanes of a block share out COLUMNS, 4 to each, and beyond those the rows of the weights.
// results = the elements of (x[m, K] @ weights[K, N])[row : row + ROWS, column : column + COLUMNS]
// that are this thread's: number threadIdx.x + i * THREADS in row-major order is its i-th.
template <int ROWS, int COLUMNS, int THREADS, class MATH, int K, int N, class VECTOR>
__device__ __forceinline__ void few_rows(VECTOR* results, float* shared, const void* x,
                                         const Word* weights, int m, int row, int column) {
  constexpr int ACROSS = COLUMNS / 4, DOWN = THREADS / ACROSS, PITCH = (N + 3) / 4;
  constexpr int WARPS = THREADS / 32, TILE = ROWS * COLUMNS, WHOLE = K / 4 * 4;
  using Sum = typename MATH::Sum;
  Sum* parts = (Sum*)shared;
  int across = threadIdx.x % ACROSS, down = threadIdx.x / ACROSS, lane = threadIdx.x % 32;
  Sum sum[ROWS][4];
  const float* first = (const float*)x + (long long)row * STRIDE<MATH, K>;
  int left[ROWS];  // where rows begin from there on; those that there are not repeat the last
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    left[r] = min(r, m - 1 - row) * STRIDE<MATH, K>;
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[r][c] = 0;
  }
  if (column + across * 4 < N) {
    const uint4* right = (const uint4*)(weights + column) + across;
    if constexpr (MATH::PACKED == 4) {
#pragma unroll 2
      for (int word = down; word < (K + 3) / 4; word += DOWN)
        add_codes<ROWS, MATH, K, PITCH>(sum, first, left, right, word);
    } else {
#pragma unroll(ROWS < 8 ? 2 : 1)  // twice as much of 8 rows spills
      for (int k = down * 4; k < WHOLE; k += DOWN * 4)
        add_products<ROWS, 4, MATH, K, PITCH>(sum, first, left, right, k);
      if (down < K - WHOLE)
        add_products<ROWS, 1, MATH, K, PITCH>(sum, first, left, right, WHOLE + down);
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int step = ACROSS; step < 32; step *= 2)
        sum[r][c] += __shfl_xor_sync(0xffffffffu, sum[r][c], step, 32);
      if (lane < ACROSS) parts[threadIdx.x / 32 * TILE + r * COLUMNS + across * 4 + c] = sum[r][c];
    }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < (TILE + THREADS - 1) / THREADS; ++i) {
    int element = threadIdx.x + i * THREADS;
    Sum total = 0;
    if (element < TILE)
#pragma unroll
      for (int w = 0; w < WARPS; ++w) total += parts[w * TILE + element];
    put(results, i, finished<MATH, K, N>(total, weights, column + element % COLUMNS));
  }
}

// A warp a row of at most 4 results, its lanes sharing out k. results[0] = that of column lane.
template <class MATH, int K, int N, class VECTOR>
__device__ __forceinline__ void row_dots(VECTOR* results, const void* x, const Word* weights,
                                         int m, int row) {
  int lane = threadIdx.x % 32;
  row += threadIdx.x / 32;
  const float* first = (const float*)x + (long long)(row < m ? row : m - 1) * STRIDE<MATH, K>;
  int left[1] = {0};
  typename MATH::Sum sum[1][4] = {};
  if constexpr (MATH::PACKED == 4) {
#pragma unroll 2
    for (int word = lane; word < (K + 3) / 4; word += 32)
      add_codes<1, MATH, K, 1>(sum, first, left, (const uint4*)weights, word);
  } else {
#pragma unroll 4
    for (int k = lane; k < K; k += 32)
      add_products<1, 1, MATH, K, 1>(sum, first, left, (const uint4*)weights, k);
  }
#pragma unroll
  for (int c = 0; c < N; ++c)
#pragma unroll
    for (int step = 16; step; step /= 2)
      sum[0][c] += __shfl_xor_sync(0xffffffffu, sum[0][c], step, 32);
  auto total = lane == 0 ? sum[0][0] : lane == 1 ? sum[0][1] : lane == 2 ? sum[0][2] : sum[0][3];
  put(results, 0, finished<MATH, K, N>(total, weights, lane));
}

}  // namespace graphopt
