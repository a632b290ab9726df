// Asynchronous copies: what they write is spoilt when they begin and there once they are waited for.
#pragma once
#include <cstring>

#include "../block.h"

namespace emulator {

struct Copy { void* to; const void* from; size_t bytes, zeros; unsigned group; };
struct Copies { Copy queue[512]; unsigned first, count, group; };
inline Copies copies[kMaxThreads];

// Words, so that the race check sees the accesses of the copy as those of its thread.
inline void spoil(void* to, size_t bytes) {
  for (size_t i = 0; i < bytes / 4; ++i) ((unsigned*)to)[i] = ~0u;
}
inline void perform(void* to, const void* from, size_t bytes, size_t zeros) {
  size_t words = (bytes - zeros) / 4;
  for (size_t i = 0; i < bytes / 4; ++i) ((unsigned*)to)[i] = i < words ? ((unsigned*)from)[i] : 0;
}

}  // namespace emulator

__attribute__((no_sanitize_thread, noinline)) static void __pipeline_memcpy_async(
    void* to, const void* from, size_t bytes, size_t zeros = 0) {
  using namespace emulator;
  bool aligned = !((uintptr_t)to % bytes || (zeros < bytes && (uintptr_t)from % bytes));
  if (!aligned || (bytes != 4 && bytes != 8 && bytes != 16))
    snprintf(error, sizeof error, "an asynchronous copy of %zu bytes that is not aligned", bytes);
  Copies& mine = copies[number_of(current->index)];
  if (mine.count == 512) snprintf(error, sizeof error, "more than 512 copies under way in a thread");
  else mine.queue[(mine.first + mine.count++) % 512] = {to, from, bytes, zeros, mine.group};
  spoil(to, bytes);
}

inline size_t __cvta_generic_to_shared(void* place) { return (size_t)place; }
static void PTX_cp_async_ca_shared_global(size_t to, const void* from, int there, size_t bytes) {
  if (there < 0 || (size_t)there > bytes)
    snprintf(emulator::error, sizeof emulator::error, "a copy of %d of %zu bytes", there, bytes);
  __pipeline_memcpy_async((void*)to, from, bytes, bytes - there);
}
static void PTX_cp_async_cg_shared_global(size_t to, const void* from, int there) {
  PTX_cp_async_ca_shared_global(to, from, there, 16);
}

__attribute__((no_sanitize_thread)) static void __pipeline_commit() {
  ++emulator::copies[emulator::number_of(emulator::current->index)].group;
}

__attribute__((no_sanitize_thread, noinline)) static void __pipeline_wait_prior(size_t groups) {
  using namespace emulator;
  Copies& mine = copies[number_of(current->index)];
  while (mine.count) {
    Copy& next = mine.queue[mine.first];
    if (next.group + groups >= mine.group) return;
    mine.first = (mine.first + 1) % 512;
    --mine.count;
    perform(next.to, next.from, next.bytes, next.zeros);
  }
}
