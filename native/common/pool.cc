#include "common/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace baseload {
namespace {

constexpr int64_t kSpinNs = 100'000;  // longer than what lies between two calls of a layer
constexpr int kSpinsPerClock = 64;
constexpr int64_t kMostTasks = 0xffffffff;  // of one job that is shared

// Tasks [begin, end) that one thread has before it: begin in the high half, end in the low one.
struct alignas(64) Share {
  std::atomic<uint64_t> range{0};
};

thread_local bool inside = false;  // this thread runs a task: it must not start a job on the pool

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

void futex_wait(std::atomic<uint32_t>* word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>* word, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

// `epoch` is odd while a job is open. A thread that wants to take part counts itself in `running`, then looks at
// `epoch` again; the caller closes the epoch, then waits for `running` to fall to zero. Both sides write first and
// read second (sequentially consistent), so either the thread sees the closed epoch or the caller sees the thread.
class Pool {
 public:
  void resize(int count) {
    std::lock_guard<std::mutex> guard(busy_);
    stop_locked();
    wanted_ = count;
  }

  int size() {
    const int known = size_.load(std::memory_order_acquire);
    if (known > 0) return known;
    std::lock_guard<std::mutex> guard(busy_);
    start_locked();
    return size_.load(std::memory_order_relaxed);
  }

  void run(int64_t tasks, TaskFn task, void* context) {
    if (inside || tasks == 1 || tasks > kMostTasks || !busy_.try_lock()) {
      run_alone(tasks, task, context);
      return;
    }
    std::lock_guard<std::mutex> guard(busy_, std::adopt_lock);
    start_locked();
    if (workers_.empty()) {
      run_alone(tasks, task, context);
      return;
    }
    task_ = task;
    context_ = context;
    share_out(tasks);
    epoch_.fetch_add(1, std::memory_order_seq_cst);  // odd: open
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      const int64_t others = tasks - 1 < static_cast<int64_t>(workers_.size()) ? tasks - 1 : workers_.size();
      futex_wake(&epoch_, static_cast<int>(others));
    }
    inside = true;
    work(0);
    inside = false;
    epoch_.fetch_add(1, std::memory_order_seq_cst);  // even: closed
    while (running_.load(std::memory_order_seq_cst) != 0) relax();
  }

  // In a child of fork there are no threads but the caller's: forget them, start anew at the next job.
  void forget_after_fork() {
    new (&busy_) std::mutex();
    for (auto& worker : workers_) worker.detach();
    workers_.clear();
    size_.store(0);
    epoch_.store(0);
    running_.store(0);
    sleeping_.store(0);
    stopping_.store(false);
  }

 private:
  static void run_alone(int64_t tasks, TaskFn task, void* context) {
    const bool before = inside;
    inside = true;
    for (int64_t i = 0; i < tasks; ++i) task(context, i, 0);
    inside = before;
  }

  void start_locked() {
    if (size_.load(std::memory_order_relaxed) > 0) return;
    const std::vector<int> cpus = allowed_cpus();
    const int count = wanted_ > 0 ? wanted_ : static_cast<int>(cpus.size());
    stopping_.store(false);
    shares_.reset(new Share[count]);
    // One thread per CPU: each of ours keeps to its own, the first is left to the caller. Fewer threads than CPUs
    // (several engines on one machine) are placed by the kernel.
    const bool pinned = count == static_cast<int>(cpus.size());
    for (int index = 1; index < count; ++index) {
      workers_.emplace_back([this, index] { loop(index); });
      if (pinned) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpus[index], &set);
        pthread_setaffinity_np(workers_.back().native_handle(), sizeof(set), &set);
      }
    }
    size_.store(count, std::memory_order_release);
  }

  void stop_locked() {
    stopping_.store(true, std::memory_order_seq_cst);
    epoch_.fetch_add(2, std::memory_order_seq_cst);
    futex_wake(&epoch_, 1 << 30);
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    size_.store(0, std::memory_order_release);
  }

  void work(int worker) {
    const TaskFn task = task_;
    void* context = context_;
    for (int64_t mine = take(worker); mine >= 0; mine = take(worker)) task(context, mine, worker);
  }

  // Neighbouring tasks to the same thread, as many to each.
  void share_out(int64_t tasks) {
    const int64_t count = static_cast<int64_t>(workers_.size()) + 1;
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t begin = tasks * i / count, end = tasks * (i + 1) / count;
      shares_[i].range.store(begin << 32 | end, std::memory_order_relaxed);
    }
  }

  // The next of this thread's own tasks, or else the last of another's; -1: none is left.
  int64_t take(int worker) {
    const int count = static_cast<int>(workers_.size()) + 1;
    for (int i = 0, of = worker; i < count; ++i, of = of + 1 < count ? of + 1 : 0) {
      std::atomic<uint64_t>& range = shares_[of].range;
      uint64_t seen = range.load(std::memory_order_relaxed);
      while (seen >> 32 < (seen & kMostTasks)) {
        const uint64_t left = i == 0 ? seen + (uint64_t{1} << 32) : seen - 1;
        if (range.compare_exchange_weak(seen, left, std::memory_order_relaxed)) {
          return static_cast<int64_t>(i == 0 ? seen >> 32 : (seen & kMostTasks) - 1);
        }
      }
    }
    return -1;
  }

  void loop(int index) {
    inside = true;
    uint32_t done = 0;  // the last epoch this thread took part in
    while (!stopping_.load(std::memory_order_acquire)) {
      const uint32_t seen = wait_for_job(done);
      if ((seen & 1) == 0) continue;
      running_.fetch_add(1, std::memory_order_seq_cst);
      if (epoch_.load(std::memory_order_seq_cst) == seen) {
        work(index);
        done = seen;
      }
      running_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  // An open epoch other than `done`, or whatever stands there when stopping.
  uint32_t wait_for_job(uint32_t done) {
    const auto open = [&](uint32_t value) { return (value & 1) != 0 && value != done; };
    auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(kSpinNs);
    for (;;) {
      for (int spin = 0; spin < kSpinsPerClock; ++spin) {
        const uint32_t value = epoch_.load(std::memory_order_seq_cst);
        if (open(value) || stopping_.load(std::memory_order_relaxed)) return value;
        relax();
      }
      if (std::chrono::steady_clock::now() < until) continue;
      sleeping_.fetch_add(1, std::memory_order_seq_cst);
      const uint32_t value = epoch_.load(std::memory_order_seq_cst);
      if (!open(value) && !stopping_.load(std::memory_order_seq_cst)) futex_wait(&epoch_, value);
      sleeping_.fetch_sub(1, std::memory_order_seq_cst);
      until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(kSpinNs);
    }
  }

  std::mutex busy_;
  std::vector<std::thread> workers_;
  int wanted_ = 0;
  std::atomic<int> size_{0};
  std::atomic<bool> stopping_{false};
  TaskFn task_ = nullptr;
  void* context_ = nullptr;
  std::unique_ptr<Share[]> shares_;  // one for each thread, the caller's first
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> sleeping_{0};
};

// Never destroyed: threads may still look at it while the process ends.
Pool& pool() {
  static Pool* const one = [] {
    auto* made = new Pool();
    pthread_atfork(nullptr, nullptr, [] { pool().forget_after_fork(); });
    return made;
  }();
  return *one;
}

}  // namespace

void set_threads(int count) { pool().resize(count < 0 ? 0 : count); }

int threads() { return pool().size(); }

void run_tasks(int64_t tasks, TaskFn task, void* context) {
  if (tasks > 0) pool().run(tasks, task, context);
}

}  // namespace baseload
