// libcudart.so.13 of a machine without a GPU: memory, copies and streams are the CPU's. With
// EMULATOR_GUARD=1 every allocation ends at a page that cannot be touched. Memory starts as NaN
// and -1.
#include <sys/mman.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#define API extern "C" __attribute__((visibility("default")))

namespace {
constexpr size_t kPage = 4096, kAlignment = 64, kMemory = (size_t)16 << 30;
constexpr size_t kTotalMemoryAt = 288;  // totalGlobalMem in cudaDeviceProp
constexpr int kNoSuchDevice = 101, kOutOfMemory = 2;
struct Mapping { void* start; size_t size; };
std::map<void*, Mapping> mappings;
std::mutex lock;
bool on(const char* name) {
  const char* text = getenv(name);
  return text && atoi(text);
}
size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

void* guarded(size_t n) {
  size_t size = rounded(n, kPage) + 2 * kPage;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  auto start = (char*)mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  memset(start, 0xFF, size);
  mprotect(start, kPage, PROT_NONE);
  mprotect(start + size - kPage, kPage, PROT_NONE);
  void* pointer = start + size - kPage - rounded(n, kAlignment);
  std::lock_guard<std::mutex> hold(lock);
  mappings[pointer] = {start, size};
  return pointer;
}
}  // namespace

API int cudaMalloc(void** out, size_t n) {
  static const bool guard = on("EMULATOR_GUARD");
  if (n > kMemory) return kOutOfMemory;
  if (guard) return (*out = guarded(n)) ? 0 : kOutOfMemory;
  size_t size = rounded(n ? n : 1, 256);
  *out = aligned_alloc(256, size);
  if (!*out) return kOutOfMemory;
  memset(*out, 0xFF, size);
  return 0;
}
API int cudaFree(void* pointer) {
  std::lock_guard<std::mutex> hold(lock);
  auto found = mappings.find(pointer);
  if (found == mappings.end()) {
    free(pointer);
  } else {
    munmap(found->second.start, found->second.size);
    mappings.erase(found);
  }
  return 0;
}
API int cudaMallocHost(void** out, size_t n) {
  *out = aligned_alloc(256, rounded(n ? n : 1, 256));
  return 0;
}
API int cudaFreeHost(void* pointer) { free(pointer); return 0; }
API int cudaMemcpyAsync(void* to, const void* from, size_t n, int, void*) {
  memcpy(to, from, n);
  return 0;
}
API int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, void*) {
  memcpy(to, from, n);
  return 0;
}
API int cudaMemGetInfo(size_t* unused, size_t* total) { *unused = *total = kMemory; return 0; }

API int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
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
  *(size_t*)((char*)properties + kTotalMemoryAt) = kMemory;
  return 0;
}
API const char* cudaGetErrorName(int code) { return code == kOutOfMemory ? "out of memory" : "error"; }
API const char* cudaGetErrorString(int code) { return cudaGetErrorName(code); }
API int cudaGetLastError() { return 0; }
API int cudaPeekAtLastError() { return 0; }

API int cudaStreamCreate(void** stream) { *stream = malloc(1); return 0; }
API int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
API int cudaStreamDestroy(void* stream) { free(stream); return 0; }
API int cudaStreamSynchronize(void*) { return 0; }
API int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
API int cudaEventCreate(void** event) { *event = malloc(1); return 0; }
API int cudaEventDestroy(void* event) { free(event); return 0; }
API int cudaEventRecord(void*, void*) { return 0; }
API int cudaEventSynchronize(void*) { return 0; }
API int cudaEventElapsedTime(float* milliseconds, void*, void*) { *milliseconds = 0; return 0; }

// Graphs are not emulated: nothing here captures one.
API int cudaStreamBeginCapture(void*, int) { abort(); }
API int cudaStreamEndCapture(void*, void**) { abort(); }
API int cudaGraphInstantiate(void**, void*, unsigned long long) { abort(); }
API int cudaGraphLaunch(void*, void*) { abort(); }
API int cudaGraphDestroy(void*) { abort(); }
API int cudaGraphExecDestroy(void*) { abort(); }
