// The kernels of an instruction set by its name in Python (engine/native/features.py).
#pragma once

#include <string_view>

#include "attention/check.h"
#include "attention/layout.h"

namespace baseload {

inline const AttentionIsa& attention_isa(std::string_view name) {
#if defined(__x86_64__)
  if (name == "amx" && attention_tiles_work()) return kAttentionAmx;
  if (name == "amx" || name == "avx512") return kAttentionAvx512;
  if (name == "avx512vnni") return kAttentionAvx512Vnni;
  if (name == "avx2" || name == "avxvnni") return kAttentionAvx2;
#endif
  if (name == "emulated") return kAttentionEmulated;
  return kAttentionScalar;
}

}  // namespace baseload
