// Launches a kernel: its blocks one after another, in an order that EMULATOR_ORDER sets (0 forward,
// 1 backward, others seed a random one). Shared memory starts as NaN and -1.
#pragma once
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "block.h"
#ifdef EMULATOR_RACES
#include "races.h"
#endif

extern "C" unsigned char __start_emulator_shared[] __attribute__((weak));
extern "C" unsigned char __stop_emulator_shared[] __attribute__((weak));

namespace emulator {

inline std::vector<unsigned> ordered(size_t count, unsigned how) {
  std::vector<unsigned> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = (unsigned)(how == 1 ? count - 1 - i : i);
  if (how > 1) std::shuffle(order.begin(), order.end(), std::mt19937(how));
  return order;
}

__attribute__((no_sanitize_thread)) RUNTIME int launch(
    void (*function)(void*), void* arguments, const unsigned* grid, const unsigned* block,
    unsigned dynamic_bytes, bool synchronizes) {
  static const char* text = getenv("EMULATOR_ORDER");
  unsigned how = text ? atoi(text) : 0;
  body = function;
  body_argument = arguments;
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {block[0], block[1], block[2]};
  error[0] = 0;
  size_t count = (size_t)block[0] * block[1] * block[2];
  size_t blocks = (size_t)grid[0] * grid[1] * grid[2];
  if (!count || count > kMaxThreads || !blocks) {
    snprintf(error, sizeof error, "a launch of %zu blocks of %zu threads", blocks, count);
    return 1;
  }
  std::vector<unsigned char> dynamic(dynamic_bytes + 128);
  dynamic_shared = (unsigned char*)(((uintptr_t)dynamic.data() + 127) & ~(uintptr_t)127);
  auto order = ordered(count, how);
#ifdef EMULATOR_RACES
  start_launch(dynamic_bytes);
  synchronizes = true;
#endif
  for (unsigned b : ordered(blocks, how)) {
    block_index = {b % grid[0], b / grid[0] % grid[1], b / (grid[0] * grid[1])};
    if (__start_emulator_shared)
      memset(__start_emulator_shared, 0xFF, __stop_emulator_shared - __start_emulator_shared);
    memset(dynamic_shared, 0xFF, dynamic_bytes);
#ifdef EMULATOR_RACES
    start_block(b);
#endif
    if (synchronizes) {
      if (!run_block(order)) return 1;
      continue;
    }
    threads.resize(1);  // threads that never wait need no stacks of their own
    current = &threads[0];
    for (unsigned i : order) {
      current->index = index_of(i);
      function(arguments);
    }
  }
  return 0;
}

template <class... A, size_t... I>
void apply(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*(std::remove_reference_t<A>*)arguments[I]...);
}
template <class... A> void call(void (*kernel)(A...), void** arguments) {
  apply(kernel, arguments, std::index_sequence_for<A...>{});
}
template <class... A> size_t sizes(void (*)(A...), size_t* found) {
  size_t all[] = {sizeof(A)..., 0};
  memcpy(found, all, sizeof...(A) * sizeof(size_t));
  return sizeof...(A);
}

}  // namespace emulator

#define EMULATOR_KERNEL(name, synchronizes)                                                     \
  extern "C" __attribute__((visibility("default"))) int emulator_launch_##name(                 \
      const unsigned* grid, const unsigned* block, unsigned bytes, void** arguments) {          \
    return emulator::launch([](void* p) { emulator::call(name, (void**)p); }, arguments, grid,  \
                            block, bytes, synchronizes);                                        \
  }                                                                                             \
  extern "C" __attribute__((visibility("default"))) size_t emulator_sizes_##name(size_t* s) {   \
    return emulator::sizes(name, s);                                                            \
  }
#ifdef EMULATOR_RUNTIME
extern "C" __attribute__((visibility("default"))) const char* emulator_error() {
  return emulator::error;
}
#endif
