// libcuda.so.1 of a machine without a GPU: what TVM's CUDA runtime calls of the driver. A kernel
// image is text: a magic word and the path of a library that was compiled from the CUDA C.
#include <dlfcn.h>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "streams.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {
const char kMagic[] = "graphopt emulator:";
using Launch = int (*)(const unsigned*, const unsigned*, unsigned, void**);
struct Function {
  Launch launch;
  size_t (*sizes)(size_t*);
  const char* (*error)();
  std::string name;
};
struct Module { void* library; std::map<std::string, Function> functions; };
std::string message;
enum { kInvalidImage = 200, kNotFound = 500, kLaunchFailed = 719, kNotSupported = 801 };
constexpr int kSharedLimit = 227 * 1024;
constexpr int kMaxArguments = 1024;

// A launch copies its arguments, which the caller may change before the kernel runs.
using Arguments = std::vector<std::vector<char>>;
Arguments copied(const Function& f, void** arguments) {
  size_t sizes[kMaxArguments], count = f.sizes(sizes);
  Arguments result;
  for (size_t i = 0; i < count; ++i)
    result.emplace_back((char*)arguments[i], (char*)arguments[i] + sizes[i]);
  return result;
}
}  // namespace

API emulator::Device* emulator_device() {
  static auto device = new emulator::Device;
  return device;
}

API int cuModuleLoadData(void** out, const void* image) {
  auto text = (const char*)image;
  if (memcmp(text, kMagic, sizeof kMagic - 1)) return kInvalidImage;
  void* library = dlopen(text + sizeof kMagic - 1, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "emulator: %s\n", dlerror());
    return kInvalidImage;
  }
  *out = new Module{library, {}};
  return 0;
}
API int cuModuleUnload(void*) { return 0; }
API int cuModuleGetFunction(void** out, void* module, const char* name) {
  auto m = (Module*)module;
  auto launch = (Launch)dlsym(m->library, (std::string("emulator_launch_") + name).c_str());
  if (!launch) return kNotFound;
  auto sizes = (size_t (*)(size_t*))dlsym(m->library, (std::string("emulator_sizes_") + name).c_str());
  auto error = (const char* (*)())dlsym(m->library, "emulator_error");
  m->functions[name] = {launch, sizes, error, name};
  *out = &m->functions[name];
  return 0;
}
API int cuFuncSetAttribute(void*, int, int bytes) { return bytes > kSharedLimit; }

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  void *stream, *attributes;
  unsigned attribute_count;
};
API int cuLaunchKernelEx(const LaunchConfig* c, void* function, void** arguments, void**) {
  auto f = (Function*)function;
  auto values = std::make_shared<Arguments>(copied(*f, arguments));
  emulator_device()->give(c->stream, [f, values, config = *c] {
    std::vector<void*> pointers;
    for (auto& value : *values) pointers.push_back(value.data());
    if (!f->launch(config.grid, config.block, config.shared_bytes, pointers.data())) return 0;
    message = "emulator: " + f->name + ": " + f->error();
    fprintf(stderr, "%s\n", message.c_str());
    return (int)kLaunchFailed;
  });
  return 0;
}
API int cuDeviceGetName(char* name, int size, int) {
  snprintf(name, size, "emulator");
  return 0;
}
API int cuGetErrorName(int, const char** name) {
  *name = message.c_str();
  return 0;
}
API int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }
API int cuTensorMapEncodeTiled() { return kNotSupported; }
