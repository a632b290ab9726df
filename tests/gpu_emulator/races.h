// Finds data races. The code is compiled with -fsanitize=thread, whose hooks are these: two
// accesses of a word race if one of them writes and they are of different blocks, or of different
// threads with no barrier between them.
#pragma once
#include <unordered_map>

#include "block.h"

#define UNSEEN __attribute__((no_sanitize_thread))
extern "C" unsigned char __start_emulator_shared[] __attribute__((weak));
extern "C" unsigned char __stop_emulator_shared[] __attribute__((weak));

namespace emulator {

struct Access { unsigned block, thread, interval; bool any, many; };
struct Word { Access write, read; };
struct Range {
  uintptr_t low, high;
  bool holds(uintptr_t a) const { return a >= low && a < high; }
};

inline std::unordered_map<uintptr_t, Word> global_words, shared_words;
inline unsigned interval, block_number;
inline bool running;
inline Range own, shared, dynamic;  // own: stacks and thread states, which are no GPU memory
inline Range states;

UNSEEN inline void note_interval() { ++interval; }
UNSEEN inline void note_running(bool now) { running = now; }
UNSEEN inline void start_launch(unsigned dynamic_bytes) {
  global_words.clear();
  shared = {(uintptr_t)__start_emulator_shared, (uintptr_t)__stop_emulator_shared};
  dynamic = {(uintptr_t)dynamic_shared, (uintptr_t)dynamic_shared + dynamic_bytes};
}
UNSEEN inline void start_block(unsigned number) {
  prepare((size_t)block_size.x * block_size.y * block_size.z);
  shared_words.clear();
  block_number = number;
  interval = 0;
  own = {(uintptr_t)stacks.data(), (uintptr_t)stacks.data() + stacks.size()};
  states = {(uintptr_t)threads.data(), (uintptr_t)(threads.data() + threads.size())};
}

UNSEEN inline bool clash(const Access& other, unsigned thread) {
  if (!other.any) return false;
  if (other.block != block_number) return true;
  return other.interval == interval && (other.many || other.thread != thread);
}

UNSEEN inline void report(const char* what, bool in_shared, const Access& other, unsigned thread) {
  if (!error[0])
    snprintf(error, sizeof error,
             "data race in %s memory (%s): thread %u of block %u and thread %u of block %u",
             in_shared ? "shared" : "global", what, other.thread, other.block, thread,
             block_number);
}

UNSEEN __attribute__((noinline)) inline void access(void* pointer, int size, bool writes) {
  auto address = (uintptr_t)pointer;
  if (!running) return;
  running = false;  // what follows is instrumented too
  if (own.holds(address) || states.holds(address)) {
    running = true;
    return;
  }
  bool in_shared = shared.holds(address) || dynamic.holds(address);
  auto& words = in_shared ? shared_words : global_words;
  unsigned thread = number_of(current->index);
  for (int i = 0; i < size; i += 4) {
    Word& word = words[address + i];
    if (clash(word.write, thread))
      report(writes ? "two writes" : "a read of what is written", in_shared, word.write, thread);
    if (writes) {
      if (clash(word.read, thread)) report("a write of what is read", in_shared, word.read, thread);
      word.write = {block_number, thread, interval, true, false};
    } else {
      bool again = word.read.any && word.read.block == block_number && word.read.interval == interval;
      bool many = again && (word.read.many || word.read.thread != thread);
      word.read = {block_number, thread, interval, true, many};
    }
  }
  running = true;
}

}  // namespace emulator

#ifdef EMULATOR_RUNTIME
#define HOOK UNSEEN __attribute__((used)) inline void
#define HOOKS(n)                                                                        \
  extern "C" HOOK __tsan_read##n(void* p) { emulator::access(p, n, false); }            \
  extern "C" HOOK __tsan_write##n(void* p) { emulator::access(p, n, true); }            \
  extern "C" HOOK __tsan_unaligned_read##n(void* p) { emulator::access(p, n, false); }  \
  extern "C" HOOK __tsan_unaligned_write##n(void* p) { emulator::access(p, n, true); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" HOOK __tsan_read_range(void* p, unsigned long n) { emulator::access(p, (int)n, false); }
extern "C" HOOK __tsan_write_range(void* p, unsigned long n) { emulator::access(p, (int)n, true); }
extern "C" HOOK __tsan_func_entry(void*) {}
extern "C" HOOK __tsan_func_exit() {}
extern "C" HOOK __tsan_init() {}
extern "C" HOOK __tsan_vptr_update(void*, void*) {}
extern "C" HOOK __tsan_vptr_read(void*) {}
#endif
