// libcudart.so.13 of a machine without a GPU: memory is the CPU's, streams are those of streams.h.
// With EMULATOR_GUARD=1 every allocation ends at a page that cannot be touched. Memory starts as NaN
// and -1; there are EMULATOR_MEMORY bytes of it. EMULATOR_CAPTURE=0 refuses to make graphs,
// EMULATOR_DEVICES=0 is a driver without a GPU.
#include <sys/mman.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "streams.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {
constexpr size_t kPage = 4096, kAlignment = 64;
constexpr size_t kTotalMemoryAt = 288;  // totalGlobalMem in cudaDeviceProp
constexpr int kNoSuchDevice = 101, kOutOfMemory = 2, kNotWhileCapturing = 900;
struct Mapping { void* start; size_t size, asked; };
std::map<void*, Mapping> mappings;  // of the device's memory; without guard pages `start` is null
size_t used = 0;
std::mutex lock;
emulator::Device& device = *emulator_device();
bool on(const char* name) {
  const char* text = getenv(name);
  return text && atoi(text);
}
size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t memory() {
  static const char* text = getenv("EMULATOR_MEMORY");
  return text ? strtoull(text, nullptr, 10) : (size_t)16 << 30;
}

void* guarded(size_t n, Mapping* mapping) {
  size_t size = rounded(n, kPage) + 2 * kPage;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  auto start = (char*)mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  memset(start, 0xFF, size);
  mprotect(start, kPage, PROT_NONE);
  mprotect(start + size - kPage, kPage, PROT_NONE);
  *mapping = {start, size, n};
  return start + size - kPage - rounded(n, kAlignment);
}

void* plain(size_t n, Mapping* mapping) {
  size_t size = rounded(n ? n : 1, 256);
  void* pointer = aligned_alloc(256, size);
  if (pointer) memset(pointer, 0xFF, size);
  *mapping = {nullptr, size, n};
  return pointer;
}
}  // namespace

API int cudaMalloc(void** out, size_t n) {
  static const bool guard = on("EMULATOR_GUARD");
  if (device.captured_by_this_thread()) return kNotWhileCapturing;
  std::lock_guard<std::mutex> hold(lock);
  if (n > memory() - used) return kOutOfMemory;
  Mapping mapping;
  *out = guard ? guarded(n, &mapping) : plain(n, &mapping);
  if (!*out) return kOutOfMemory;
  used += n;
  mappings[*out] = mapping;
  return 0;
}
API int cudaFree(void* pointer) {
  if (!pointer) return 0;
  device.work_all();
  std::lock_guard<std::mutex> hold(lock);
  Mapping mapping = mappings.at(pointer);
  mappings.erase(pointer);
  used -= mapping.asked;
  if (mapping.start) munmap(mapping.start, mapping.size);
  else free(pointer);
  return 0;
}
API int cudaMallocHost(void** out, size_t n) {
  *out = aligned_alloc(256, rounded(n ? n : 1, 256));
  return 0;
}
API int cudaHostAlloc(void** out, size_t n, unsigned) { return cudaMallocHost(out, n); }
API int cudaHostGetDevicePointer(void** out, void* pointer, unsigned) {
  *out = pointer;
  return 0;
}
API int cudaFreeHost(void* pointer) {
  device.work_all();
  free(pointer);
  return 0;
}
API int cudaMemcpyAsync(void* to, const void* from, size_t n, int, void* stream) {
  device.give(stream, [=] { return memcpy(to, from, n), 0; });
  return 0;
}
API int cudaMemsetAsync(void* to, int value, size_t n, void* stream) {
  device.give(stream, [=] { return memset(to, value, n), 0; });
  return 0;
}
API int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, void* stream) {
  return cudaMemcpyAsync(to, from, n, 0, stream);
}
API int cudaMemGetInfo(size_t* unused, size_t* total) {
  *total = memory();
  *unused = *total - used;
  return 0;
}

API int cudaGetDeviceCount(int* count) {
  const char* text = getenv("EMULATOR_DEVICES");
  *count = text ? atoi(text) : 1;
  return 0;
}
API int cudaGetDevice(int* device) { *device = 0; return 0; }
API int cudaSetDevice(int device) { return device ? kNoSuchDevice : 0; }
API int cudaDeviceGetAttribute(int* value, int attribute, int) {
  const char* text = getenv("EMULATOR_ARCHITECTURE");  // such as 90
  int architecture = text ? atoi(text) : 90;
  static const std::map<int, int> values = {
      {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},        // threads per block, size of a block
      {5, 2147483647}, {6, 65535}, {7, 65535},         // size of a grid
      {8, 49152}, {10, 32}, {12, 65536},               // shared memory, warp, registers
      {13, 1980000}, {16, 132}, {38, 50 << 20}};       // clock, multiprocessors, cache
  if (attribute == 75) *value = architecture / 10;
  else if (attribute == 76) *value = architecture % 10;
  else *value = values.count(attribute) ? values.at(attribute) : 0;
  return 0;
}
API int cudaGetDeviceProperties(void* properties, int) {
  *(size_t*)((char*)properties + kTotalMemoryAt) = memory();
  return 0;
}
extern "C" int cuGetErrorName(int, const char**);
API const char* cudaGetErrorName(int code) {
  if (code == kOutOfMemory) return "out of memory";
  if (code == kNotWhileCapturing) return "operation not permitted when stream is capturing";
  const char* name;
  cuGetErrorName(code, &name);
  return name;
}
API const char* cudaGetErrorString(int code) { return cudaGetErrorName(code); }
API int cudaGetLastError() { return device.error; }
API int cudaPeekAtLastError() { return device.error; }

API int cudaStreamCreateWithFlags(void** stream, unsigned) {
  std::lock_guard<std::recursive_mutex> hold(device.lock);
  auto made = new emulator::Stream;
  device.streams.insert(made);
  *stream = made;
  return 0;
}
API int cudaStreamCreate(void** stream) { return cudaStreamCreateWithFlags(stream, 0); }
API int cudaStreamDestroy(void* stream) {
  std::lock_guard<std::recursive_mutex> hold(device.lock);
  device.work(device.of(stream), device.of(stream)->given);
  device.streams.erase((emulator::Stream*)stream);  // events may still point to it
  return 0;
}
API int cudaStreamSynchronize(void* stream) {
  emulator::Stream* s = device.of(stream);
  if (s->capture) return kNotWhileCapturing;
  return device.work(s, s->given);
}
API int cudaStreamWaitEvent(void* stream, void* event, unsigned) {
  emulator::Event e = *(emulator::Event*)event;
  if (e.stream) device.give(stream, [=] { return device.work(e.stream, e.position); });
  return 0;
}
API int cudaEventCreate(void** event) { *event = new emulator::Event; return 0; }
API int cudaEventDestroy(void* event) { delete (emulator::Event*)event; return 0; }
API int cudaEventRecord(void* event, void* stream) {
  std::lock_guard<std::recursive_mutex> hold(device.lock);
  *(emulator::Event*)event = {device.of(stream), device.of(stream)->given};
  return 0;
}
API int cudaEventSynchronize(void* event) {
  auto e = (emulator::Event*)event;
  return e->stream ? device.work(e->stream, e->position) : 0;
}
API int cudaEventElapsedTime(float* milliseconds, void*, void*) { *milliseconds = 1; return 0; }

API int cudaStreamBeginCapture(void* stream, int) {
  static const char* text = getenv("EMULATOR_CAPTURE");
  if (text && !atoi(text)) return kNotWhileCapturing;
  std::lock_guard<std::recursive_mutex> hold(device.lock);
  device.of(stream)->capture = new emulator::Graph;
  device.of(stream)->capturing = std::this_thread::get_id();
  return 0;
}
API int cudaStreamEndCapture(void* stream, void** graph) {
  std::lock_guard<std::recursive_mutex> hold(device.lock);
  *graph = device.of(stream)->capture;
  device.of(stream)->capture = nullptr;
  return 0;
}
API int cudaGraphGetNodes(void* graph, void**, size_t* count) {
  *count = ((emulator::Graph*)graph)->steps.size();
  return 0;
}
API int cudaGraphInstantiate(void** executable, void* graph, unsigned long long) {
  *executable = new emulator::Graph(*(emulator::Graph*)graph);
  return 0;
}
API int cudaGraphLaunch(void* executable, void* stream) {
  for (auto& step : ((emulator::Graph*)executable)->steps) device.give(stream, step);
  return 0;
}
API int cudaGraphDestroy(void* graph) { delete (emulator::Graph*)graph; return 0; }
API int cudaGraphExecDestroy(void* graph) { return cudaGraphDestroy(graph); }
