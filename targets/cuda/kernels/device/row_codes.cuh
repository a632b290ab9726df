// Rows of x as codes of 8 bits, each in its own range, as `graphopt::DynamicMatMul` has it.
namespace graphopt {

struct RowRange {
  float high = 0, low = 0;
  int bits = 0;  // of the largest magnitude: more than infinity has for a NaN
  __device__ __forceinline__ void add(float x) {
    high = fmaxf(high, x);
    low = fminf(low, x);
    bits = max(bits, __float_as_int(x) & 0x7fffffff);
  }
  template <int GROUP> __device__ __forceinline__ void share() {
#pragma unroll
    for (int step = GROUP / 2; step; step /= 2) {
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, step, 32));
      low = fminf(low, __shfl_xor_sync(0xffffffffu, low, step, 32));
      bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, step, 32));
    }
  }
};

// GROUP neighbouring threads, 4 to 32, share a row, and read it once where they can HOLD it.
template <int K, int GROUP, int LEVELS>
__device__ __forceinline__ void row_codes(Word* codes, const float* x, int m, int row) {
  using Row = CodedRow<K>;
  constexpr int EACH = (Row::DISTANCE + GROUP - 1) / GROUP, HOLD = EACH <= 8 ? EACH : 1;
  int lane = threadIdx.x % GROUP;
  const float* from = x + (long long)min(row, m - 1) * K;
  float4 held[HOLD];
  RowRange range;
#pragma unroll(HOLD)
  for (int i = 0; i < EACH; ++i) {
    int k = (lane + i * GROUP) * 4;
    float4 v = held[i % HOLD] = four<K>(from + k, K - k);
    range.add(v.x), range.add(v.y), range.add(v.z), range.add(v.w);
  }
  range.template share<GROUP>();
  // Halves, which are exact, so that no spread of finite numbers is infinite.
  float distance = fmaxf((range.high * 0.5f - range.low * 0.5f) * (float)(2.0 / LEVELS), 1e-30f);
  int zero = (int)fminf(rintf(-range.low / distance), 255.0f);
  if (range.bits >= 0x7f800000) distance = __uint_as_float(0x7fc00000u), zero = 0;
  auto code = [&](float v) {
    return (Word)(max(min(__float2int_rn(v / distance), 255 - zero), -zero) + zero - 128) & 255;
  };
  if (row >= m) return;
  Word* out = codes + (long long)row * Row::PITCH;
#pragma unroll(HOLD)
  for (int i = 0; i < EACH; ++i) {
    int word = lane + i * GROUP;
    float4 v = HOLD == EACH ? held[i % HOLD] : four<K>(from + word * 4, K - word * 4);
    Word four_codes = code(v.x) | code(v.y) << 8 | code(v.z) << 16 | code(v.w) << 24;
    if (word < Row::DISTANCE) out[word] = word * 4 < K ? four_codes : 0;
  }
  if (lane < 4)
    out[Row::DISTANCE + lane] = lane == 0 ? __float_as_uint(distance) : lane == 1 ? 128 - zero : 0;
}

}  // namespace graphopt
