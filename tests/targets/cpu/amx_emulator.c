/* What AMX's instructions do, as Intel's manual says, for the tests of kernels that use them. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };

static struct {
  int rows, bytes;
  uint8_t data[ROWS][BYTES];
} tiles[TILES];
static int configured;

int64_t emulated_counts[2]; /* tiles loaded, and tiles multiplied, so far */

/* What the CPU answers with an exception. */
static void require(int condition) {
  if (!condition) abort();
}

void emulated_ldtilecfg(const uint8_t *config) {
  require(config[0] == 1);
  for (int i = 1; i < 16; i++) require(!config[i]);
  for (int i = 32; i < 48; i++) require(!config[i]);
  for (int i = 56; i < 64; i++) require(!config[i]);
  for (int i = 0; i < TILES; i++) {
    tiles[i].bytes = config[16 + 2 * i] | config[17 + 2 * i] << 8;
    tiles[i].rows = config[48 + i];
    require(tiles[i].bytes <= BYTES && tiles[i].rows <= ROWS);
    require(!tiles[i].bytes == !tiles[i].rows);
    /* The CPU sets tiles to zero. NaN instead: sums that nobody sets to zero show. */
    memset(tiles[i].data, 0xff, sizeof tiles[i].data);
  }
  configured = 1;
}

void emulated_tilerelease(void) { configured = 0; }

void emulated_tilezero(int8_t tile) {
  require(configured && tiles[tile].rows);
  memset(tiles[tile].data, 0, sizeof tiles[tile].data);
}

void emulated_tileloadd64(int8_t tile, const uint8_t *from, int64_t stride) {
  require(configured && tiles[tile].rows);
  emulated_counts[0]++;
  memset(tiles[tile].data, 0, sizeof tiles[tile].data);
  for (int row = 0; row < tiles[tile].rows; row++)
    memcpy(tiles[tile].data[row], from + row * stride, tiles[tile].bytes);
}

void emulated_tilestored64(int8_t tile, uint8_t *to, int64_t stride) {
  require(configured && tiles[tile].rows);
  for (int row = 0; row < tiles[tile].rows; row++)
    memcpy(to + row * stride, tiles[tile].data[row], tiles[tile].bytes);
}

/* What all products need: C[m, n] += A[m, k] * B[k, n], in words of 4 bytes. */
static void check(int8_t c, int8_t a, int8_t b) {
  emulated_counts[1]++;
  require(configured && tiles[c].rows && tiles[a].rows && tiles[b].rows);
  require(c != a && c != b && a != b);
  require(tiles[c].bytes % 4 == 0 && tiles[a].bytes % 4 == 0 && tiles[b].bytes % 4 == 0);
  require(tiles[c].rows == tiles[a].rows && tiles[c].bytes == tiles[b].bytes);
  require(tiles[a].bytes == 4 * tiles[b].rows);
}

static float widened(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

/* Of NaNs that meet, the first one is the result. */
static float fused(float a, float b, float c) {
  return a != a ? a + a : b != b ? b + b : c != c ? c + c : __builtin_fmaf(a, b, c);
}

static float added(float a, float b) { return a != a ? a + a : b != b ? b + b : a + b; }

/* Sums of the even and of the odd elements of a row, then both together, then onto the tile. */
__attribute__((noinline)) static void sum_rows(int8_t sums, int8_t left, int8_t right) {
  for (int m = 0; m < tiles[sums].rows; m++) {
    float *total = (float *)tiles[sums].data[m];
    const uint16_t *a = (const uint16_t *)tiles[left].data[m];
    for (int n = 0; n < tiles[sums].bytes / 4; n++) {
      float even = 0, odd = 0;
      for (int k = 0; k < tiles[right].rows; k++) {
        const uint16_t *b = (const uint16_t *)tiles[right].data[k];
        even = fused(widened(a[2 * k]), widened(b[2 * n]), even);
        odd = fused(widened(a[2 * k + 1]), widened(b[2 * n + 1]), odd);
      }
      total[n] = added(total[n], added(even, odd));
    }
  }
}

/* Subnormal numbers count as zero and become zero, results are rounded to nearest, ties to even. */
void emulated_tdpbf16ps(int8_t sums, int8_t left, int8_t right) {
  check(sums, left, right);
  unsigned before = _mm_getcsr();
  _mm_setcsr(0x9fc0);
  sum_rows(sums, left, right);
  _mm_setcsr(before);
}

/* Unsigned bytes times signed ones; sums neither saturate nor round. */
void emulated_tdpbusd(int8_t sums, int8_t left, int8_t right) {
  check(sums, left, right);
  for (int m = 0; m < tiles[sums].rows; m++) {
    uint32_t *total = (uint32_t *)tiles[sums].data[m];
    const uint8_t *a = tiles[left].data[m];
    for (int k = 0; k < tiles[right].rows; k++) {
      const int8_t *b = (const int8_t *)tiles[right].data[k];
      for (int n = 0; n < tiles[sums].bytes / 4; n++)
        for (int i = 0; i < 4; i++) total[n] += (uint32_t)(a[4 * k + i] * b[4 * n + i]);
    }
  }
}
