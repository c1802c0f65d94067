// Whether the AMX kernels give the same results as plain C++ on this machine.
#pragma once

namespace baseload {

// Asked once, on first use, about a millisecond; false where the processor or the kernel offers no tiles.
bool amx_works();

}  // namespace baseload
