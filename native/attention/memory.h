// Scratch memory that grows and is kept; one per thread and purpose.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace baseload {

class Aligned {
 public:
  Aligned() = default;
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  ~Aligned() { std::free(data_); }

  // At least `size` bytes from a cache line on; what was there before may be gone.
  uint8_t* bytes(int64_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = (size + 4095) / 4096 * 4096;
      data_ = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(size_)));
      if (data_ == nullptr) std::abort();
    }
    return data_;
  }

 private:
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace baseload
