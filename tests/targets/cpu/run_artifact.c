/* Runs an artifact's library without Python, for CPUs that an emulator stands in for.

   run_artifact FILE: FILE holds int64 counts of sizes, weights, inputs and outputs; the sizes; then
   tensors in that order (outputs without data): code, bits, rank, dims, data. Outputs go to stdout. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct { int32_t type_index, padding; union { int64_t number; void *pointer; } value; } Any;
typedef struct {
  void *data;
  struct { int32_t type, id; } device;
  int32_t rank;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;

enum { INT = 1, TENSOR_POINTER = 7, CPU = 1, DL_INT = 0, DL_UINT = 1 };

int __tvm_ffi_graphopt_plan(void *, const Any *, int32_t, Any *);
int __tvm_ffi_graphopt_run(void *, const Any *, int32_t, Any *);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t k = 0; k < count; ++k) fputs(parts[k], stderr);
}

static void *allocate(int type, int id, uint64_t size, int code, int bits) {
  return aligned_alloc(64, (size + 64) / 64 * 64);
}

static int release(int type, int id, void *memory) {
  free(memory);
  return 0;
}

void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;

static FILE *file;

static int64_t number(void) {
  int64_t found;
  if (fread(&found, sizeof found, 1, file) != 1) exit(2);
  return found;
}

static Tensor *tensor(int code, int bits, int rank, int64_t *shape) {
  Tensor *made = calloc(1, sizeof *made);
  *made = (Tensor){.device = {CPU, 0}, .rank = rank, .dtype = {code, bits, 1}, .shape = shape};
  made->strides = malloc(8 * (rank + 1));
  int64_t count = 1;
  for (int k = rank - 1; k >= 0; --k) {
    made->strides[k] = count;
    count *= shape[k];
  }
  made->data = aligned_alloc(64, (count * bits / 8 + 64) / 64 * 64);
  return made;
}

static size_t nbytes(const Tensor *t) {
  size_t count = t->dtype.bits / 8;
  for (int k = 0; k < t->rank; ++k) count *= t->shape[k];
  return count;
}

static Tensor *read_tensor(int with_data) {
  int64_t code = number(), bits = number(), rank = number(), *shape = malloc(8 * (rank + 1));
  for (int64_t k = 0; k < rank; ++k) shape[k] = number();
  Tensor *made = tensor(code, bits, rank, shape);
  size_t size = nbytes(made);
  if (with_data && size && fread(made->data, 1, size, file) != size) exit(2);
  return made;
}

int main(int argc, char **argv) {
  if (argc != 2 || !(file = fopen(argv[1], "rb"))) return 2;
  int64_t sizes = number(), weights = number(), inputs = number(), outputs = number();
  Any plan_args[64], run_args[64], result = {0};
  for (int64_t k = 0; k < sizes; ++k) plan_args[k] = (Any){INT, 0, {.number = number()}};

  int64_t addresses_shape = weights ? weights : 1;
  Tensor *addresses = tensor(DL_INT, 64, 1, &addresses_shape);
  for (int64_t k = 0; k < weights; ++k) ((void **)addresses->data)[k] = read_tensor(1)->data;
  Tensor *out[64];
  int64_t count = 0, plan_shape = 1;
  for (int64_t k = 0; k < inputs; ++k)
    run_args[count++] = (Any){TENSOR_POINTER, 0, {.pointer = read_tensor(1)}};
  for (int64_t k = 0; k < outputs; ++k) {
    out[k] = read_tensor(0);
    plan_shape += out[k]->rank;
    run_args[count++] = (Any){TENSOR_POINTER, 0, {.pointer = out[k]}};
  }
  Tensor *plan = tensor(DL_INT, 64, 1, &plan_shape);
  plan_args[sizes] = (Any){TENSOR_POINTER, 0, {.pointer = plan}};
  if (__tvm_ffi_graphopt_plan(NULL, plan_args, sizes + 1, &result)) return 3;

  int64_t room = ((int64_t *)plan->data)[0];
  run_args[count++] = (Any){TENSOR_POINTER, 0, {.pointer = addresses}};
  run_args[count++] = (Any){TENSOR_POINTER, 0, {.pointer = tensor(DL_UINT, 8, 1, &room)}};
  if (__tvm_ffi_graphopt_run(NULL, run_args, count, &result)) return 4;
  for (int64_t k = 0; k < outputs; ++k) fwrite(out[k]->data, 1, nbytes(out[k]), stdout);
  return 0;
}
