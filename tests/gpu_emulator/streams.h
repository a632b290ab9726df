// Streams, events and graphs, shared by the two stand-ins. A stream does nothing before somebody
// waits for it: what a program does too early, such as writing to memory that a copy is yet to read,
// then shows in its results.
#pragma once
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace emulator {
using Step = std::function<int()>;  // returns an error of the driver
struct Graph { std::vector<Step> steps; };
struct Stream {
  std::deque<Step> waiting;
  size_t done = 0, given = 0;
  Graph* capture = nullptr;  // takes the steps while there is one
  std::thread::id capturing;
};
struct Event { Stream* stream = nullptr; size_t position = 0; };

struct Device {
  std::recursive_mutex lock;
  Stream default_stream;
  std::set<Stream*> streams{&default_stream};
  int error = 0;  // the first one stays, as on a GPU

  Stream* of(void* stream) { return stream ? (Stream*)stream : &default_stream; }
  void give(void* stream, Step step) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    Stream* s = of(stream);
    if (s->capture) return s->capture->steps.push_back(std::move(step));
    s->waiting.push_back(std::move(step));
    ++s->given;
  }
  int work(Stream* s, size_t until) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    while (s->done < until && !error) {
      Step step = std::move(s->waiting.front());
      s->waiting.pop_front();
      ++s->done;
      if (int code = step()) error = code;
    }
    return error;
  }
  int work_all() {
    std::lock_guard<std::recursive_mutex> hold(lock);
    for (Stream* s : streams) work(s, s->given);
    return error;
  }
  bool captured_by_this_thread() {
    std::lock_guard<std::recursive_mutex> hold(lock);
    for (Stream* s : streams)
      if (s->capture && s->capturing == std::this_thread::get_id()) return true;
    return false;
  }
};
}  // namespace emulator

extern "C" emulator::Device* emulator_device();
