// Every task once, whoever calls; sizes change; a child of fork starts anew.
#include "common/pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/check.h"

namespace {

bool each_once(int64_t tasks) {
  std::vector<std::atomic<int>> seen(tasks);
  std::vector<int64_t> values(tasks);
  baseload::parallel_for(tasks, [&](int64_t task, int worker) {
    seen[task].fetch_add(1, std::memory_order_relaxed);
    values[task] = task * 3 + (worker < 0 || worker >= baseload::threads());
  });
  for (int64_t i = 0; i < tasks; ++i) {
    if (seen[i].load() != 1 || values[i] != i * 3) return false;
  }
  return true;
}

void nested() {
  std::atomic<int64_t> total{0};
  baseload::parallel_for(20, [&](int64_t, int) {
    baseload::parallel_for(10, [&](int64_t inner, int) { total.fetch_add(inner, std::memory_order_relaxed); });
  });
  CHECK(total.load() == 20 * 45, "%lld", static_cast<long long>(total.load()));
}

void from_many_threads() {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) wrong += !each_once(1 + i % 17);
    });
  }
  for (auto& one : callers) one.join();
  CHECK(wrong.load() == 0, "%d", wrong.load());
}

void after_fork() {
#if !defined(__SANITIZE_THREAD__)  // it refuses threads in a child of fork
  const pid_t child = fork();
  if (child == 0) _exit(each_once(1000) ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%d", status);
#endif
}

}  // namespace

int main() {
  for (const int threads : {0, 1, 2, 5, 0}) {
    baseload::set_threads(threads);
    for (const int64_t tasks : {0, 1, 2, 3, 100, 5000}) CHECK(each_once(tasks), "%d threads", threads);
    for (int i = 0; i < 2000; ++i) CHECK(each_once(4), "round %d", i);
    nested();
    from_many_threads();
  }
  after_fork();
  CHECK(each_once(100), "after fork");
  return failures != 0;
}
