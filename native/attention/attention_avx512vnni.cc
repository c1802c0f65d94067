// AVX-512 with VNNI, without BF16.
#include "attention/lanes_avx512.h"
//
#include "attention/body.inl"

namespace baseload {
extern const AttentionIsa kAttentionAvx512Vnni{24, prepare, attend, merge, route, hadamard, finish};
}
