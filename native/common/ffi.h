// XLA's foreign-function interface, and how a handler is exported.
//
//   BASELOAD_FFI(bl_example, example, ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<...>()...)
//
// defines the symbol `bl_example`. The list of symbols to register stands in engine/native/library.py.
#pragma once

#include "xla/ffi/api/ffi.h"

#define BASELOAD_EXPORT extern "C" __attribute__((visibility("default")))

#define BASELOAD_FFI(symbol, function, ...)                        \
  BASELOAD_EXPORT XLA_FFI_Error* symbol(XLA_FFI_CallFrame* frame); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function, __VA_ARGS__)

namespace ffi = xla::ffi;
