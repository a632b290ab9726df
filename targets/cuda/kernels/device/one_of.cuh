// Which of several operands a block works with.
namespace graphopt {

template <class T>
static __device__ __forceinline__ T* one_of(int, T* last) { return last; }

// The k-th of some pointers.
template <class T, class... Rest>
static __device__ __forceinline__ T* one_of(int k, T* first, Rest... rest) {
  return k == 0 ? first : one_of(k - 1, rest...);
}

}  // namespace graphopt
