// Where a key or a value lies in the paged cache, and what one attention call is about.
//
// The cache is one byte array [block][layer][kv_head][tile], so that what a sequence uses is close together whatever the
// cache's size; a tile holds up to 16 positions of one head:
//   bf16:  keys   [dim/2][16 positions][2]   a pair of dimensions of 16 positions is one 64-byte line, so 16 scores are
//                                             summed without a horizontal add; the layout of AMX's second operand too
//          values [8][dim_v][2]              pairs of positions, dim_v = dim rounded up to 16
//   int8:  keys   [dim_k/4][16][4]           unsigned, 128 added; dim_k = dim rounded up to 4
//          values [4][dim_v][4]              unsigned, 128 added
//          scales float[16] of keys, float[16] of values (per position and head)
// A block of `block_tokens` positions is ceil(block_tokens / 16) tiles; the last may be filled in part only.
// The first position written to a tile clears the rest, so unwritten lanes are always finite.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baseload {

constexpr int kTile = 16;        // positions
constexpr int kChunkTiles = 8;   // one step of the online softmax
constexpr int kSplitChunks = 4;  // the softmax starts anew here, and parts are merged in order: the same in every batch
constexpr int64_t kMaxDim = 1024;  // of a head

// How a query vector is kept for the products: bfloat16, 16-bit integers in the order in which the bytes of a line are
// widened, or floats.
enum class Query { kBf16, kInt16, kFloats };

struct CacheLayout {
  int64_t heads, kv_heads, groups, dim;
  int64_t dim_k, dim_v;
  int64_t block_tokens, block_tiles;
  int64_t value_offset, scale_offset, tile_bytes, block_bytes, layer_bytes;  // of a block; of a layer within it
  int64_t q_bytes;  // one query vector, prepared
  bool int8;
};

static inline CacheLayout make_layout(int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_tokens, int64_t layers,
                                      bool int8) {
  CacheLayout c{};
  c.heads = heads;
  c.kv_heads = kv_heads;
  c.groups = heads / kv_heads;
  c.dim = dim;
  c.dim_k = int8 ? (dim + 3) / 4 * 4 : (dim + 1) / 2 * 2;
  c.dim_v = (dim + 15) / 16 * 16;
  c.block_tokens = block_tokens;
  c.block_tiles = (block_tokens + kTile - 1) / kTile;
  c.int8 = int8;
  const int64_t item = int8 ? 1 : 2;
  c.value_offset = c.dim_k * kTile * item;
  c.scale_offset = c.value_offset + c.dim_v * kTile * item;
  c.tile_bytes = c.scale_offset + (int8 ? 2 * kTile * 4 : 0);
  c.layer_bytes = kv_heads * c.block_tiles * c.tile_bytes;
  c.block_bytes = layers * c.layer_bytes;
  c.q_bytes = c.dim_v * 4;
  return c;
}

struct Place {
  int64_t tile;  // counted over the sequence: block index · block_tiles + tile in the block
  int lane;
};

static inline Place place_of(const CacheLayout& c, int64_t position) {
  const int64_t block = position / c.block_tokens, inside = position % c.block_tokens;
  return {block * c.block_tiles + inside / kTile, static_cast<int>(inside % kTile)};
}

// Position of a tile's first lane, and how many lanes it has.
static inline int64_t tile_start(const CacheLayout& c, int64_t tile) {
  return tile / c.block_tiles * c.block_tokens + tile % c.block_tiles * kTile;
}
static inline int64_t tile_lanes(const CacheLayout& c, int64_t tile) {
  const int64_t left = c.block_tokens - tile % c.block_tiles * kTile;
  return left < kTile ? left : kTile;
}
static inline int64_t tile_offset(const CacheLayout& c, const int32_t* table, int64_t kv_head, int64_t tile) {
  const int64_t block = table[tile / c.block_tiles];
  return block * c.block_bytes + (kv_head * c.block_tiles + tile % c.block_tiles) * c.tile_bytes;
}

// One row on its way into the cache: normalised, turned, written.
struct RowTask {
  const CacheLayout* layout;
  const float* qkv;     // [heads + 2 kv_heads][dim]
  const float* angles;  // cos[dim/2], sin[dim/2]
  const float* q_norm;  // [dim], or null
  const float* k_norm;
  float eps;
  int64_t position;
  const int32_t* table;
  uint8_t* cache;  // of the layer in block 0
  uint8_t* q;      // out: [heads] prepared query vectors
  float* q_extra;  // out, int8: [heads][2] scale and 128 · sum
};

// Queries of one kv head: `rows` consecutive positions of one sequence, `groups` heads each.
struct AttendTask {
  const CacheLayout* layout;
  const uint8_t* q;      // row 0's first head of this kv head; rows are q_stride apart
  const float* q_extra;  // the same, rows are heads · 2 apart
  int64_t rows, first_position, window, kv_head;
  const int32_t* table;
  const uint8_t* cache;      // of the layer in block 0
  int64_t split, splits;     // from this split on, so many; splits < 0: all there are
  float* out;                // [rows][heads · dim], at this kv head; null: leave a part
  float* part;               // [rows · groups][part_floats]: sums[dim_v], maximum, weight
  uint8_t* scratch;          // attend_scratch_bytes
};

// Heads that fill whole matrix tiles of 32 dimensions; others take vectors on such machines too.
static inline bool fits_tiles(const CacheLayout& c) { return c.dim % 32 == 0; }

// Rows of one AttendTask of at most `vectors` query vectors: at least one row, however many groups.
static inline int64_t rows_per_task(const CacheLayout& c, int64_t vectors) {
  return c.groups >= vectors ? 1 : vectors / c.groups;
}
// Of one vector; whole cache lines.
static inline int64_t part_floats(const CacheLayout& c) { return c.dim_v + 16; }
static inline int64_t attend_scratch_bytes(const CacheLayout& c, int64_t vectors) {
  const int64_t n = (rows_per_task(c, vectors) * c.groups + 31) / 32 * 32, columns = kChunkTiles * kTile;
  const int64_t sums = n * (2 * part_floats(c) * 4 + columns * 6 + 16), tiles = n * c.dim_v * 2 + columns * (c.dim_v * 4 + 4);
  return sums + tiles + 4096;
}
static inline int64_t split_of(const CacheLayout& c, int64_t position) {
  return place_of(c, position).tile / (kChunkTiles * kSplitChunks);
}
static inline int64_t first_seen(int64_t position, int64_t window) {
  return position - window + 1 > 0 ? position - window + 1 : 0;
}

// Up to kRouteRows rows and the experts they choose.
constexpr int64_t kRouteRows = 8;
struct RouteTask {
  const float* x;       // [rows][hidden]
  const float* norm;    // [hidden]
  const float* router;  // [experts][hidden]
  int64_t rows, hidden, experts, chosen;
  bool normalize;
  float eps;
  int32_t* experts_out;  // [rows][chosen]
  float* weights_out;    // [rows][chosen]
  float* scratch;        // route_scratch_floats
};
static inline int64_t route_scratch_floats(int64_t hidden, int64_t experts) {
  return kRouteRows * ((hidden + 15) / 16 * 16 + experts);
}

// The instruction sets' entry points. `merge` adds part to total; both as AttendTask.part's rows.
struct AttentionIsa {
  int64_t vectors;  // queries of one AttendTask
  void (*prepare)(const RowTask&);
  void (*attend)(const AttendTask&);
  void (*merge)(const CacheLayout&, float* total, const float* part);
  void (*route)(const RouteTask&);
  // x[size] in place: orthonormal Walsh-Hadamard transforms of `block` numbers each, block a power of two >= 16.
  void (*hadamard)(float* x, int64_t size, int64_t block);
  void (*finish)(const CacheLayout&, const float* total, float* out);  // one vector: sums / weight -> out[dim]
};

extern const AttentionIsa kAttentionScalar, kAttentionAvx2, kAttentionAvx512Vnni, kAttentionAvx512, kAttentionAmx,
    kAttentionEmulated;

}  // namespace baseload
