// AMX tiles for the products, AVX-512 for what stands between them. Never run on AMX hardware by its authors: it is used
// only where attention_tiles_work() (check.h) has compared it with plain C++ in the same process.
#define BASELOAD_ATTENTION_TILES 1
#include "attention/lanes_avx512.h"
#include "common/tile.h"
//
#include "attention/body.inl"
#include "attention/tiles.inl"

namespace baseload {
extern const AttentionIsa kAttentionAmx{128, prepare, OnTiles<RealTiles>::attend, merge, route, hadamard, finish};
}
