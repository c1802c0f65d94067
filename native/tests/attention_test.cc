// Steps of random spans through every instruction set of this machine: near the portable kernels, and the same bits
// however a sequence is cut and whoever is beside it. Run under the sanitizers too: buffers are exactly as large as needed.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "attention/isa.h"
#include "attention/step.h"
#include "common/cpu.h"
#include "common/pool.h"
#include "tests/check.h"

namespace {

using namespace baseload;

struct Model {
  int64_t heads, kv_heads, dim, block_tokens, window;
  bool int8, norms;
  int64_t width() const { return (heads + 2 * kv_heads) * dim; }
};

struct Sequence {
  std::vector<float> rows;  // [count][width]
  int64_t count;
  std::vector<int32_t> table;
};

constexpr int64_t kLayers = 2, kLayer = 1;

class Engine {
 public:
  Engine(const Model& model, int64_t blocks, const AttentionIsa& isa)
      : model_(model),
        isa_(isa),
        layout_(make_layout(model.heads, model.kv_heads, model.dim, model.block_tokens, kLayers, model.int8)),
        cache_(new uint8_t[static_cast<size_t>(blocks * layout_.block_bytes)]) {
    std::memset(cache_.get(), 0xff, static_cast<size_t>(blocks * layout_.block_bytes));  // NaN, until it is written
    for (int64_t i = 0; i < model.dim; ++i) norm_.push_back(1.0f + 0.01f * static_cast<float>(i % 7));
  }

  struct Part {
    const Sequence* sequence;
    int64_t from, count;
  };

  // [rows][heads · dim] of all parts.
  std::vector<float> step(const std::vector<Part>& parts) {
    int64_t rows = 0;
    for (const Part& part : parts) rows += part.count;
    std::vector<float> qkv, angles, out(static_cast<size_t>(rows * model_.heads * model_.dim));
    StepCall call{};
    int64_t at = 0;
    for (const Part& part : parts) {
      const float* from = part.sequence->rows.data() + part.from * model_.width();
      qkv.insert(qkv.end(), from, from + part.count * model_.width());
      for (int64_t i = 0; i < part.count; ++i) turn(part.from + i, &angles);
      call.spans.push_back({at, part.count, part.from, part.sequence->table.data()});
      at += part.count;
    }
    call.layout = layout_;
    call.isa = &isa_;
    call.qkv = qkv.data();
    call.angles = angles.data();
    call.q_norm = call.k_norm = model_.norms ? norm_.data() : nullptr;
    call.eps = 1e-6f;
    call.window = model_.window;
    call.rows = rows;
    call.cache = cache_.get() + kLayer * layout_.layer_bytes;
    call.out = out.data();
    attend_step(call);
    return out;
  }

 private:
  void turn(int64_t position, std::vector<float>* angles) const {
    for (int part = 0; part < 2; ++part)
      for (int64_t i = 0; i < model_.dim / 2; ++i) {
        const float angle = static_cast<float>(position) * std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(model_.dim));
        angles->push_back(part ? std::sin(angle) : std::cos(angle));
      }
  }

  Model model_;
  const AttentionIsa& isa_;
  CacheLayout layout_;
  std::unique_ptr<uint8_t[]> cache_;
  std::vector<float> norm_;
};

std::vector<const char*> isas() {
  std::vector<const char*> names{"portable", "emulated"};
  if (cpu_features().avx2) names.push_back("avx2");
  if (cpu_features().avx512vnni) names.push_back("avx512vnni");
  if (cpu_features().avx512) names.push_back("avx512");
  if (attention_tiles_work()) names.push_back("amx");
  return names;
}

void one_model(const Model& model, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const int64_t lengths[] = {70, 1, 33, 640};
  std::vector<Sequence> sequences;
  int32_t blocks = 0;
  for (int64_t count : lengths) {
    Sequence s{{}, count, {}};
    for (int64_t i = 0; i < count * model.width(); ++i) s.rows.push_back(normal(random));
    for (int64_t b = 0; b * model.block_tokens < count; ++b) s.table.push_back(blocks++);
    sequences.push_back(std::move(s));
  }
  std::vector<float> first;
  for (const char* name : isas()) {
    Engine whole(model, blocks, attention_isa(name)), pieces(model, blocks, attention_isa(name));
    std::vector<float> expected;
    for (const Sequence& s : sequences) {
      const std::vector<float> out = whole.step({{&s, 0, s.count}});
      expected.insert(expected.end(), out.begin(), out.end());
    }
    if (first.empty()) first = expected;
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK(std::isfinite(expected[i]), "%s gives %g", name, expected[i]);
      CHECK(std::fabs(expected[i] - first[i]) < 0.06f, "%s is far from the portable kernels at %zu", name, i);
    }
    std::vector<float> found(expected.size());
    std::vector<int64_t> done(sequences.size()), base(sequences.size() + 1);
    const int64_t columns = model.heads * model.dim;
    for (size_t i = 0; i < sequences.size(); ++i) base[i + 1] = base[i] + sequences[i].count * columns;
    for (;;) {
      std::vector<Engine::Part> parts;
      for (size_t i = 0; i < sequences.size(); ++i) {
        const int64_t left = sequences[i].count - done[i], take = 1 + static_cast<int64_t>(random() % 40);
        if (left > 0 && random() % 4) parts.push_back({&sequences[i], done[i], take < left ? take : left});
      }
      if (parts.empty() && done[3] == sequences[3].count) break;
      if (parts.empty()) continue;
      const std::vector<float> out = pieces.step(parts);
      int64_t at = 0;
      for (const Engine::Part& part : parts) {
        const size_t i = static_cast<size_t>(part.sequence - sequences.data());
        std::memcpy(found.data() + base[i] + part.from * columns, out.data() + at, static_cast<size_t>(part.count * columns) * 4);
        at += part.count * columns;
        done[i] += part.count;
      }
    }
    for (size_t i = 0; i < sequences.size(); ++i)
      if (done[i] == sequences[i].count)
        CHECK(std::memcmp(found.data() + base[i], expected.data() + base[i], static_cast<size_t>(base[i + 1] - base[i]) * 4) == 0,
              "%s: sequence %zu in pieces differs", name, i);
  }
}

void transforms_undo_themselves() {
  for (const char* name : isas()) {
    std::vector<float> x(256), once;
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50);
    for (int64_t block : {16, 64, 256}) {
      std::vector<float> y = x;
      attention_isa(name).hadamard(y.data(), 256, block);
      attention_isa(name).hadamard(y.data(), 256, block);
      for (size_t i = 0; i < x.size(); ++i) CHECK(std::fabs(y[i] - x[i]) < 1e-4f, "%s, block %d", name, static_cast<int>(block));
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (int threads : {1, 2, 4}) {
    set_threads(threads);
    for (bool int8 : {false, true}) {
      one_model({4, 2, 16, 16, 1 << 30, int8, false}, random);
      one_model({6, 2, 22, 5, 40, int8, true}, random);
      one_model({3, 1, 72, 24, 1 << 30, int8, true}, random);
      one_model({6, 2, 32, 16, 77, int8, false}, random);  // whole tiles
      one_model({20, 1, 64, 24, 1 << 30, int8, true}, random);
    }
  }
  transforms_undo_themselves();
  return failures != 0;
}
