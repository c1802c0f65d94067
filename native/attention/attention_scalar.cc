// The reference, without any instruction set asked for.
#include "attention/lanes_scalar.h"
//
#include "attention/body.inl"

namespace baseload {
extern const AttentionIsa kAttentionScalar{32, prepare, attend, merge, route, hadamard, finish};
}
