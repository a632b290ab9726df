// Runs one thread block on the CPU: each CUDA thread is a fiber, which gives way at barriers and
// warp operations. What a GPU leaves undefined (a barrier that some threads miss, a shuffle with a
// lane that is not there) ends the launch with a message. x86-64.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };

// Compiled once, as an object that all libraries are linked with; those of kernels only declare it.
#ifdef EMULATOR_RUNTIME
#define RUNTIME __attribute__((used)) inline
#else
#define RUNTIME __attribute__((gnu_inline)) inline
#endif

namespace emulator {

enum class State { ready, barrier, shuffle, converge, done };

struct Thread {
  void* stack;
  State state;
  int line;              // of the source, where it waits
  unsigned mask;         // shuffle: the lanes that take part
  unsigned active;       // converge: the lanes that came together
  int source;            // shuffle: the lane to read from
  uint64_t sent, received;
  uint3 index;
};

constexpr int kWarp = 32;
constexpr size_t kStack = 65536;
constexpr size_t kMaxThreads = 1024;

inline Thread* current;
inline void* scheduler_stack;
inline uint3 block_index;
inline dim3 block_size, grid_size;
inline unsigned char* dynamic_shared;
inline void (*body)(void*);
inline void* body_argument;
inline char error[512];
inline std::vector<Thread> threads;
inline std::vector<char> stacks;

#ifdef EMULATOR_RACES
void note_interval();
void note_running(bool running);
#else
inline void note_interval() {}
inline void note_running(bool) {}
#endif

extern "C" void emulator_switch(void** save, void* to);
__asm__(
    ".text\n.local emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

inline void give_way(State state, int line) {
  current->state = state;
  current->line = line;
  emulator_switch(&current->stack, scheduler_stack);
}

inline void enter() {
  body(body_argument);
  give_way(State::done, 0);
  abort();
}

inline unsigned number_of(uint3 i) { return i.x + block_size.x * (i.y + block_size.y * i.z); }
inline int lane() { return number_of(current->index) % kWarp; }
inline uint3 index_of(unsigned n) {
  return {n % block_size.x, n / block_size.x % block_size.y, n / (block_size.x * block_size.y)};
}

inline void barrier(int line) { give_way(State::barrier, line); }
inline unsigned active_lanes(int line) {
  give_way(State::converge, line);
  return current->active;
}
template <class T> T shuffle(unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) <= 8, "shuffle of a wide type");
  current->sent = 0;
  memcpy(&current->sent, &value, sizeof(T));
  current->mask = mask;
  current->source = source;
  give_way(State::shuffle, line);
  T result;
  memcpy(&result, &current->received, sizeof(T));
  return result;
}

inline void prepare(size_t count) {
  threads.resize(count);
  if (stacks.size() < count * kStack) stacks.resize(count * kStack);
  for (size_t i = 0; i < count; ++i) {
    auto top = ((uintptr_t)stacks.data() + (i + 1) * kStack) & ~(uintptr_t)63;
    void** stack = (void**)top;
    *--stack = nullptr;
    *--stack = (void*)enter;
    for (int k = 0; k < 6; ++k) *--stack = nullptr;
    threads[i].stack = stack;
    threads[i].state = State::ready;
    threads[i].index = index_of((unsigned)i);
  }
}

// Lets every thread at the barrier go on, if all have come.
inline bool pass_barrier(size_t waiting, size_t gone) {
  int line = 0;
  bool same = true;
  for (auto& t : threads) {
    if (t.state != State::barrier) continue;
    if (line && line != t.line) same = false;
    line = t.line;
  }
  if (!same || gone) {
    snprintf(error, sizeof error, same ? "line %d: __syncthreads after %zu threads have ended"
                                       : "line %d: __syncthreads in diverging branches", line, gone);
    return false;
  }
  for (auto& t : threads) t.state = State::ready;
  note_interval();
  return waiting > 0;
}

// Exchanges the values of shuffles for which all lanes of the mask have come.
inline bool pass_shuffles(Thread* warp, int lanes) {
  bool progress = false;
  for (int first = 0; first < lanes; ++first) {
    if (warp[first].state != State::shuffle) continue;
    unsigned mask = warp[first].mask;
    if (lanes < kWarp) mask &= (1u << lanes) - 1;
    if (!(mask >> first & 1)) {
      snprintf(error, sizeof error, "line %d: lane %d is not in the mask of its shuffle",
               warp[first].line, first);
      return false;
    }
    bool complete = true;
    for (int l = 0; l < lanes; ++l)
      if (mask >> l & 1)
        complete &= warp[l].state == State::shuffle && warp[l].line == warp[first].line;
    if (!complete) continue;
    for (int l = 0; l < lanes; ++l) {
      if (!(mask >> l & 1)) continue;
      int s = warp[l].source;
      bool there = s < lanes && (mask >> s & 1);
      warp[l].received = there ? warp[s].sent : ~0ull;  // undefined on a GPU
    }
    for (int l = 0; l < lanes; ++l)
      if (mask >> l & 1) warp[l].state = State::ready;
    progress = true;
  }
  return progress;
}

inline bool pass_convergence(Thread* warp, int lanes) {
  unsigned together = 0;
  for (int l = 0; l < lanes; ++l)
    if (warp[l].state == State::converge) together |= 1u << l;
  for (int l = 0; l < lanes; ++l) {
    if (!(together >> l & 1)) continue;
    warp[l].active = together;
    warp[l].state = State::ready;
  }
  return together != 0;
}

// True once every thread has ended; false after an error. `order` is the order of the threads.
inline bool run_block(const std::vector<unsigned>& order) {
  size_t count = order.size();
  prepare(count);
  for (;;) {
    for (unsigned i : order) {
      if (threads[i].state != State::ready) continue;
      current = &threads[i];
      note_running(true);
      emulator_switch(&scheduler_stack, current->stack);
      note_running(false);
    }
    if (error[0]) return false;
    size_t gone = 0, waiting = 0;
    for (auto& t : threads) {
      gone += t.state == State::done;
      waiting += t.state == State::barrier;
    }
    if (gone == count) return true;
    if (waiting + gone == count) {
      if (!pass_barrier(waiting, gone)) return false;
      continue;
    }
    bool progress = false;
    for (size_t w = 0; w < count; w += kWarp)
      progress |= pass_shuffles(&threads[w], (int)std::min<size_t>(kWarp, count - w));
    for (size_t w = 0; w < count && !progress && !error[0]; w += kWarp)
      progress |= pass_convergence(&threads[w], (int)std::min<size_t>(kWarp, count - w));
    if (!progress && !error[0])
      snprintf(error, sizeof error, "deadlock: %zu threads at __syncthreads, %zu ended, the rest "
               "in warp operations that not all of their lanes reach", waiting, gone);
    if (error[0]) return false;
  }
}

}  // namespace emulator
