// AVX2 and FMA.
#include "attention/lanes_avx2.h"
//
#include "attention/body.inl"

namespace baseload {
extern const AttentionIsa kAttentionAvx2{24, prepare, attend, merge, route, hadamard, finish};
}
