// Whether the AMX kernels give the same results as plain C++ on this machine.
#pragma once

#include "matmul/kernels.h"

namespace baseload {

// Asked once, on first use, about a millisecond; false where the processor or the kernel offers no tiles.
bool amx_works();

// Whether products by `kernels` are those in plain C++, for some of each scheme.
bool agrees_with_plain(const Kernels* kernels);

}  // namespace baseload
