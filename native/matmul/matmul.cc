#include "matmul/matmul.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/cpu.h"
#include "common/pool.h"

namespace baseload {
namespace {

constexpr int64_t kTaskBytes = 48 * 1024;   // of weights in one task, about
constexpr int64_t kTileTaskBytes = 64 * 1024;  // the same where tiles take the rows
constexpr int64_t kSerialValues = 24 * 1024;  // below this many activations, one thread prepares them
constexpr int64_t kFewRows = 12;
constexpr int64_t kRowChunk = 96;           // rows in one task where panels alone do not fill the threads
constexpr int64_t kNearBytes = 1 << 20;     // of activations that a task walks for each of its panels: half a core's cache

// Memory that a thread keeps and that only grows.
class Arena {
 public:
  ~Arena() { std::free(data_); }
  uint8_t* get(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = round_up(bytes, 1 << 16);
      data_ = static_cast<uint8_t*>(std::aligned_alloc(kAlign, size_));
      if (!data_) std::abort();
    }
    return data_;
  }

 private:
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

thread_local Arena activations_arena, scratch_arena;

Activations make_activations(const Product& p) {
  const int64_t kp = p.w.kp, rows = p.rows, blocks = kp / kBlock4;
  const bool bf16 = p.w.scheme == Scheme::kBf16, four = p.w.scheme == Scheme::kW4;
  const bool wide = p.kernels->wide && p.w.scheme == Scheme::kW8, floats = p.kernels->floats && bf16;
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t here = at;
    at += round_up(bytes, kAlign);
    return here;
  };
  const int64_t size = floats ? 4 : bf16 ? 2 : 1, room = rows + kTileRows;
  // An odd number of cache lines from row to row: neighbouring rows lie in different sets of the nearest cache.
  const int64_t lda = kp * size / 64 % 2 ? kp : kp + 64 / size;
  const int64_t values = take(room * lda * size), wides = take(wide ? rows * lda * 2 : 0);
  const int64_t scale = take(rows * 4), sum = take(rows * 4), sums = take(four ? rows * blocks * 8 : 0);
  uint8_t* base = activations_arena.get(at + kAlign);
  Activations a;
  a.kp = kp;
  a.lda = lda;
  a.codes = reinterpret_cast<int8_t*>(base + values);
  a.bf16 = reinterpret_cast<uint16_t*>(base + values);
  a.floats = reinterpret_cast<float*>(base + values);
  a.wide = wide ? reinterpret_cast<int16_t*>(base + wides) : nullptr;
  a.scale = reinterpret_cast<float*>(base + scale);
  a.sum = reinterpret_cast<int32_t*>(base + sum);
  a.sums = reinterpret_cast<int32_t*>(base + sums);
  return a;
}

void prepare(const Product& p, const Activations& a) {
  const auto one = [&](int64_t row) {
    const int64_t from = p.pick ? p.pick[row] : row;
    p.kernels->prepare_row(p.x + from * p.w.k, p.norm, p.eps, p.w.k, p.w.scheme, a, row);
  };
  if (p.rows * p.w.kp <= kSerialValues) {
    for (int64_t row = 0; row < p.rows; ++row) one(row);
    return;
  }
  const int64_t chunk = kSerialValues / 4 / p.w.kp + 1;
  parallel_for((p.rows + chunk - 1) / chunk, [&](int64_t task, int) {
    const int64_t end = (task + 1) * chunk < p.rows ? (task + 1) * chunk : p.rows;
    for (int64_t row = task * chunk; row < end; ++row) one(row);
  });
}

// How one matrix's work is cut: panels by `panels`, rows by `rows`.
struct Cut {
  int64_t panels = 2, rows = 0;
  int64_t across = 1, down = 1;
  int64_t tasks() const { return across * down; }
};

Cut cut(const Matrix& w, int64_t line, int64_t rows, int64_t workers, bool tiles) {
  Cut c;
  if (rows <= 0) {
    c.across = 0;
    return c;
  }
  const int64_t pairs = (w.panels + 1) / 2, bytes = 2 * (w.panel_bytes() + w.group_bytes());
  // Few rows are a matter of memory: small tasks. Many rows are work: several panels, so that one fetches the next.
  const int64_t few = tiles ? kTileTaskBytes / bytes : kTaskBytes / bytes;
  const int64_t most = rows <= (tiles ? kTileRows : kFewRows) ? few : pairs, fair = pairs / (workers * 4);
  int64_t each = most < fair ? most : fair;
  each = each < 1 ? 1 : each;
  c.panels = 2 * each;
  c.across = (pairs + each - 1) / each;
  c.rows = rows;
  if (c.across < workers * 3 && rows > kRowChunk) {
    c.rows = kRowChunk;
    c.down = (rows + kRowChunk - 1) / kRowChunk;
  } else if (tiles && rows * line > kNearBytes) {  // tiles outrun what comes from further away
    c.down = (rows * line + kNearBytes - 1) / kNearBytes;
    c.rows = round_up((rows + c.down - 1) / c.down, kTileRows);
    c.down = (rows + c.rows - 1) / c.rows;
  }
  return c;
}

void run_task(const Product& p, const Activations& a, const Cut& c, int64_t expert, int64_t row0, int64_t rows,
              int64_t task) {
  const int64_t across = task % c.across, down = task / c.across;
  Block b;
  b.w = p.w;
  b.w.codes += expert * p.stride;
  b.w.groups += expert * p.stride;
  b.w.scale = reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(p.w.scale) + expert * p.stride);
  b.a = a;
  b.row_begin = row0 + down * c.rows;
  b.row_end = b.row_begin + c.rows < row0 + rows ? b.row_begin + c.rows : row0 + rows;
  b.panel_begin = across * c.panels;
  b.panel_end = b.panel_begin + c.panels < p.w.panels ? b.panel_begin + c.panels : p.w.panels;
  b.epilogue = p.epilogue;
  b.bias = p.bias;
  b.residual = p.residual;
  b.out = p.out;
  b.columns = p.columns;
  b.ldo = p.columns;
  b.scratch = scratch_arena.get(kScratchPanels * p.w.kp * kPanel);
  p.kernels->run(b);
}

void multiply_experts(const Product& p, const Activations& a) {
  const int64_t line = a.lda * (p.w.scheme == Scheme::kBf16 ? 2 : 1);
  struct Job {
    int64_t expert, row, rows, first;
    Cut c;
  };
  std::vector<Job> jobs;
  int64_t tasks = 0;
  for (int64_t e = 0; e < p.experts; ++e) {
    const int64_t row = p.offsets[e], rows = p.offsets[e + 1] - row;
    if (rows <= 0) continue;
    jobs.push_back({e, row, rows, tasks, cut(p.w, line, rows, 1, p.kernels->tiles)});
    tasks += jobs.back().c.tasks();
  }
  parallel_for(tasks, [&](int64_t task, int) {
    size_t low = 0, high = jobs.size();
    while (high - low > 1) {
      const size_t middle = (low + high) / 2;
      (jobs[middle].first <= task ? low : high) = middle;
    }
    const Job& job = jobs[low];
    run_task(p, a, job.c, job.expert, job.row, job.rows, task - job.first);
  });
}

}  // namespace

const Kernels* kernels_for(Isa isa) {
  const CpuFeatures& cpu = cpu_features();
  switch (isa) {
    case Isa::kPortable:
      return kernels_portable();
    case Isa::kEmulated:
      return kernels_emulated();
#if defined(__x86_64__)
    case Isa::kAvx2:
      return cpu.avx2 ? kernels_avx2() : nullptr;
    case Isa::kAvxVnni:
      return cpu.avxvnni ? kernels_avxvnni() : nullptr;
    case Isa::kAvx512Vnni:
      return cpu.avx512vnni ? kernels_avx512vnni() : nullptr;
    case Isa::kAvx512:
      return cpu.avx512 ? kernels_avx512() : nullptr;
    case Isa::kAmx:
      return cpu.amx_int8 && cpu.amx_bf16 ? kernels_amx() : nullptr;
#endif
    default:
      return nullptr;
  }
}

void multiply(const Product& p) {
  if (p.rows <= 0) return;
  const Activations a = make_activations(p);
  prepare(p, a);
  if (p.offsets) {
    multiply_experts(p, a);
    return;
  }
  const Cut c = cut(p.w, a.lda * (p.w.scheme == Scheme::kBf16 ? 2 : 1), p.rows, threads(), p.kernels->tiles);
  parallel_for(c.tasks(), [&](int64_t task, int) { run_task(p, a, c, 0, 0, p.rows, task); });
}

void unpack_row(const Matrix& w, int64_t index, float* to) {
  const int64_t p = index / kPanel, o = index % kPanel;
  const uint8_t* panel = w.panel(p);
  if (w.scheme == Scheme::kBf16) {
    for (int64_t k = 0; k < w.k; ++k) {
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, panel + (k / 2) * 64 + o * 4 + (k % 2) * 2, 2);
      std::memcpy(to + k, &bits, 4);
    }
    return;
  }
  const float scale = w.scale[index];
  if (w.scheme == Scheme::kW8) {
    for (int64_t k = 0; k < w.k; ++k) to[k] = scale * static_cast<float>(panel[(k / 4) * 64 + o * 4 + k % 4] - 128);
    return;
  }
  const uint8_t* groups = w.panel_groups(p);
  for (int64_t k = 0; k < w.k; ++k) {
    const uint8_t both = panel[(k / 8) * 64 + o * 4 + k % 4];
    const int32_t code = k % 8 < 4 ? both & 15 : both >> 4;
    const uint8_t* g = groups + (k / w.group) * 2 * kPanel;
    to[k] = scale * static_cast<float>(g[o] * code + g[kPanel + o] - 128);
  }
}

}  // namespace baseload
