// The products as XLA calls them. Weights, norms and biases are one buffer of bytes and offsets into it, so a compiled
// program holds no address and no copy of a weight.
#include <cstring>
#include <string>

#include "common/ffi.h"
#include "common/pool.h"
#include "matmul/matmul.h"

namespace baseload {
namespace {

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using U8 = ffi::Buffer<ffi::U8>;

ffi::Error bad(const char* what) { return ffi::Error::InvalidArgument(std::string("baseload kernels: ") + what); }

struct Weights {  // attributes of a call that name a packed matrix
  int32_t isa, scheme;
  int64_t n, k, group, weight, norm, bias;
  float eps;
  int32_t epilogue;
};

bool inside(int64_t offset, int64_t bytes, int64_t size) { return offset >= 0 && offset % 4 == 0 && offset + bytes <= size; }

// Fills what `product` takes from the blob; null or the reason why not.
const char* bind(const Weights& w, const U8& blob, int64_t experts, Product* product) {
  const int64_t size = static_cast<int64_t>(blob.element_count());
  const uint8_t* base = blob.typed_data();
  if (w.scheme < 0 || w.scheme > 2 || w.epilogue < 0 || w.epilogue > 2) return "unknown scheme or epilogue";
  const Scheme scheme = static_cast<Scheme>(w.scheme);
  if (scheme == Scheme::kW4 && w.group != 32 && w.group != 64 && w.group != 128) return "a group is 32, 64 or 128";
  if (w.n < 0 || w.k < 0 || w.k > kMaxDepth) return "the matrix has an impossible size";
  product->kernels = kernels_for(static_cast<Isa>(w.isa));
  if (!product->kernels) return "this processor lacks the instruction set that the program was made for";
  const Parts parts = parts_of(shape_of(scheme, w.n, w.k, w.group));
  if (!inside(w.weight, parts.total * experts, size)) return "the weights lie outside of their buffer";
  product->w = matrix_at(base + w.weight, scheme, w.n, w.k, w.group);
  product->stride = parts.total;
  product->eps = w.eps;
  if (w.norm >= 0) {
    if (!inside(w.norm, w.k * 4, size)) return "the norm lies outside of its buffer";
    product->norm = reinterpret_cast<const float*>(base + w.norm);
  }
  if (w.bias >= 0) {
    if (!inside(w.bias, product->w.panels * kPanel * 4, size)) return "the bias lies outside of its buffer";
    product->bias = reinterpret_cast<const float*>(base + w.bias);
  }
  product->epilogue = static_cast<Epilogue>(w.epilogue);
  return nullptr;
}

const char* fits(const F32& x, int64_t out_columns, const Product& p) {
  if (x.dimensions().size() != 2 || x.dimensions()[1] != p.w.k) return "activations are not [rows, k]";
  const int64_t most = p.epilogue == Epilogue::kSwiglu ? p.w.panels / 2 * kPanel : p.w.n;
  if (out_columns > most || (p.epilogue == Epilogue::kSwiglu && p.w.panels % 2)) return "the result is too wide";
  return nullptr;
}

ffi::Error matmul(F32 x, S32 active, S32 pick, F32 residual, U8 blob, ffi::Result<F32> out, int32_t isa,
                  int32_t scheme, int64_t n, int64_t k, int64_t group, int64_t weight, int64_t norm, int64_t bias,
                  float eps, int32_t epilogue) {
  Product p;
  if (const char* why = bind({isa, scheme, n, k, group, weight, norm, bias, eps, epilogue}, blob, 1, &p)) return bad(why);
  if (out->dimensions().size() != 2 || active.element_count() != 1) return bad("the result is not [rows, columns]");
  const int64_t rows = out->dimensions()[0], columns = out->dimensions()[1];
  if (const char* why = fits(x, columns, p)) return bad(why);
  const int64_t wanted = active.typed_data()[0];
  p.rows = wanted < 0 ? 0 : wanted < rows ? wanted : rows;
  p.x = x.typed_data();
  if (pick.element_count() > 0) {
    if (static_cast<int64_t>(pick.element_count()) != rows) return bad("one picked row for each row of the result");
    p.pick = pick.typed_data();
    for (int64_t i = 0; i < p.rows; ++i) {
      if (p.pick[i] < 0 || p.pick[i] >= x.dimensions()[0]) return bad("a picked row is not there");
    }
  } else if (x.dimensions()[0] != rows) {
    return bad("the result has another number of rows");
  }
  if (p.epilogue == Epilogue::kResidual) {
    if (static_cast<int64_t>(residual.element_count()) != rows * columns) return bad("the residual has another shape");
    p.residual = residual.typed_data();
  }
  p.out = out->typed_data();
  p.columns = columns;
  multiply(p);
  return ffi::Error::Success();
}

ffi::Error experts(F32 x, S32 pick, S32 offsets, U8 blob, ffi::Result<F32> out, int32_t isa, int32_t scheme, int64_t n,
                   int64_t k, int64_t group, int64_t weight, int64_t norm, float eps, int32_t epilogue) {
  Product p;
  p.experts = static_cast<int64_t>(offsets.element_count()) - 1;
  if (p.experts < 1 || epilogue == 1) return bad("offsets of no expert, or a residual");
  if (const char* why = bind({isa, scheme, n, k, group, weight, norm, -1, eps, epilogue}, blob, p.experts, &p)) {
    return bad(why);
  }
  if (out->dimensions().size() != 2) return bad("the result is not [rows, columns]");
  const int64_t rows = out->dimensions()[0], columns = out->dimensions()[1];
  if (const char* why = fits(x, columns, p)) return bad(why);
  p.offsets = offsets.typed_data();
  for (int64_t e = 0; e <= p.experts; ++e) {
    if (p.offsets[e] < (e ? p.offsets[e - 1] : 0) || p.offsets[e] > rows) return bad("offsets do not ascend");
  }
  p.rows = p.offsets[p.experts];
  p.x = x.typed_data();
  if (pick.element_count() > 0) {
    if (static_cast<int64_t>(pick.element_count()) != rows) return bad("one picked row for each row of the result");
    p.pick = pick.typed_data();
    for (int64_t i = 0; i < p.rows; ++i) {
      if (p.pick[i] < 0 || p.pick[i] >= x.dimensions()[0]) return bad("a picked row is not there");
    }
  } else if (x.dimensions()[0] != rows) {
    return bad("the result has another number of rows");
  }
  p.out = out->typed_data();
  p.columns = columns;
  multiply(p);
  return ffi::Error::Success();
}

ffi::Error unpack_rows(S32 tokens, U8 blob, ffi::Result<F32> out, int32_t scheme, int64_t n, int64_t k, int64_t group,
                 int64_t weight) {
  Product p;
  if (const char* why = bind({0, scheme, n, k, group, weight, -1, -1, -1.0f, 0}, blob, 1, &p)) return bad(why);
  const int64_t count = static_cast<int64_t>(tokens.element_count());
  if (static_cast<int64_t>(out->element_count()) != count * k) return bad("the result is not [tokens, k]");
  const int32_t* ids = tokens.typed_data();
  float* to = out->typed_data();
  parallel_for((count + 7) / 8, [&](int64_t task, int) {
    const int64_t end = (task + 1) * 8 < count ? (task + 1) * 8 : count;
    for (int64_t i = task * 8; i < end; ++i) {
      const int64_t id = ids[i] < 0 ? 0 : ids[i] < n ? ids[i] : n - 1;  // as XLA's gather clamps
      unpack_row(p.w, id, to + i * k);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace baseload

BASELOAD_FFI(bl_matmul, baseload::matmul,
             ffi::Ffi::Bind()
                 .Arg<ffi::Buffer<ffi::F32>>()
                 .Arg<ffi::Buffer<ffi::S32>>()
                 .Arg<ffi::Buffer<ffi::S32>>()
                 .Arg<ffi::Buffer<ffi::F32>>()
                 .Arg<ffi::Buffer<ffi::U8>>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Attr<int32_t>("isa")
                 .Attr<int32_t>("scheme")
                 .Attr<int64_t>("n")
                 .Attr<int64_t>("k")
                 .Attr<int64_t>("group")
                 .Attr<int64_t>("weight")
                 .Attr<int64_t>("norm")
                 .Attr<int64_t>("bias")
                 .Attr<float>("eps")
                 .Attr<int32_t>("epilogue"));

BASELOAD_FFI(bl_experts, baseload::experts,
             ffi::Ffi::Bind()
                 .Arg<ffi::Buffer<ffi::F32>>()
                 .Arg<ffi::Buffer<ffi::S32>>()
                 .Arg<ffi::Buffer<ffi::S32>>()
                 .Arg<ffi::Buffer<ffi::U8>>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Attr<int32_t>("isa")
                 .Attr<int32_t>("scheme")
                 .Attr<int64_t>("n")
                 .Attr<int64_t>("k")
                 .Attr<int64_t>("group")
                 .Attr<int64_t>("weight")
                 .Attr<int64_t>("norm")
                 .Attr<float>("eps")
                 .Attr<int32_t>("epilogue"));

BASELOAD_FFI(bl_unpack_rows, baseload::unpack_rows,
             ffi::Ffi::Bind()
                 .Arg<ffi::Buffer<ffi::S32>>()
                 .Arg<ffi::Buffer<ffi::U8>>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Attr<int32_t>("scheme")
                 .Attr<int64_t>("n")
                 .Attr<int64_t>("k")
                 .Attr<int64_t>("group")
                 .Attr<int64_t>("weight"));
