// The attention kernels, written once over a type `S` of 16 lanes (lanes_*.h) and compiled per instruction set.
// Everything is in an anonymous namespace and uses no standard templates, so that no instruction of a wide set can
// reach a machine without it through the linker's choice among equal functions.

namespace {

using baseload::AttendTask;
using baseload::CacheLayout;
using baseload::kChunkTiles;
using baseload::kMaxDim;
using baseload::kSplitChunks;
using baseload::kTile;
using baseload::Query;
using baseload::RouteTask;
using baseload::RowTask;
using F = S::F;
using I = S::I;

constexpr float kNothing = -__builtin_inff();
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kPInt = 32767.0f;  // weights of int8 values are rounded to 15 bits of the chunk's largest

inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// How queries are kept: it follows from the shape alone, so that it is the same for all rows of a cache.
inline Query query_of(const CacheLayout& c) {
  if (S::kTiles && baseload::fits_tiles(c)) return Query::kBf16;
  if (c.int8) return Query::kInt16;
  return S::kFloats ? Query::kFloats : Query::kBf16;
}

}  // namespace

#include "attention/prepare.inl"
#include "attention/products.inl"
#include "attention/softmax.inl"
#include "attention/attend.inl"
#include "attention/route.inl"
