// Whether attention on this processor's matrix tiles gives what plain C++ gives.
#pragma once

namespace baseload {

// Asked once: false without AMX, and where the results are far apart.
bool attention_tiles_work();

}  // namespace baseload
