// What the CUDA part was built from. The package compares it before it uses the part.

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <cstdint>

namespace {

int64_t version() { return SYMGROUND_VERSION; }  // of the sources, which may differ from those of _C.so
int64_t toolkit() { return CUDART_VERSION / 1000; }  // the toolkit's major version

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(symground_CUDA, m) {
  m.def("version() -> int");
  m.def("cuda() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(symground_CUDA, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&version));
  m.impl("cuda", TORCH_BOX(&toolkit));
}
