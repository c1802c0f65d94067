// The kernels of an instruction set by its name in Python (engine/native/features.py).
#pragma once

#include <string_view>

#include "attention/layout.h"

namespace baseload {

inline const AttentionIsa& attention_isa(std::string_view name) {
#if defined(__x86_64__)
  if (name == "amx" || name == "avx512") return kAttentionAvx512;
  if (name == "avx2" || name == "avxvnni") return kAttentionAvx2;
#endif
  (void)name;
  return kAttentionScalar;
}

}  // namespace baseload
