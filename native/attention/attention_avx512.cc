// AVX-512 with VNNI and BF16.
#include "attention/lanes_avx512.h"
//
#include "attention/body.inl"

namespace baseload {
extern const AttentionIsa kAttentionAvx512{32, prepare, attend, merge, route, hadamard, finish};
}
