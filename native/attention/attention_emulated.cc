// The kernels for tiles on emulated ones: for tests on processors without AMX, never for use.
#define BASELOAD_ATTENTION_TILES 1
#include "attention/lanes_scalar.h"
#include "common/tile.h"
//
#include "attention/body.inl"
#include "attention/tiles.inl"

namespace baseload {
extern const AttentionIsa kAttentionEmulated{128, prepare, OnTiles<EmulatedTiles>::attend, merge, route, hadamard, finish};
}
