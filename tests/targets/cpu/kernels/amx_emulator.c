/* What AMX's instructions do, as Intel's manual says, for the tests of kernels that use them. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 16, BYTES = 64 };

static uint8_t tiles[8][ROWS][BYTES];
static int configured;

static void require(int condition) {
  if (!condition) abort();
}

static float widened(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

void emulated_ldtilecfg(const uint8_t *config) {
  require(config[0] == 1);
  for (int tile = 0; tile < 8; tile++)
    require(config[16 + 2 * tile] == BYTES && !config[17 + 2 * tile] && config[48 + tile] == ROWS);
  memset(tiles, 0xff, sizeof tiles); /* NaN: sums that nobody set to zero show */
  configured = 1;
}

void emulated_tilerelease(void) { configured = 0; }

void emulated_tilezero(int8_t tile) {
  require(configured);
  memset(tiles[tile], 0, sizeof tiles[tile]);
}

void emulated_tileloadd64(int8_t tile, const uint8_t *from, int64_t stride) {
  require(configured);
  for (int row = 0; row < ROWS; row++) memcpy(tiles[tile][row], from + row * stride, BYTES);
}

void emulated_tilestored64(int8_t tile, uint8_t *to, int64_t stride) {
  require(configured);
  for (int row = 0; row < ROWS; row++) memcpy(to + row * stride, tiles[tile][row], BYTES);
}

void emulated_tdpbf16ps(int8_t sums, int8_t left, int8_t right) {
  require(configured);
  float(*total)[16] = (float(*)[16])tiles[sums];
  uint16_t(*a)[32] = (uint16_t(*)[32])tiles[left];
  uint16_t(*b)[32] = (uint16_t(*)[32])tiles[right];
  for (int m = 0; m < ROWS; m++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++) {
        total[m][n] += widened(a[m][2 * k]) * widened(b[k][2 * n]);
        total[m][n] += widened(a[m][2 * k + 1]) * widened(b[k][2 * n + 1]);
      }
}
