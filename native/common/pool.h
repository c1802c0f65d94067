// Fork and join on persistent threads.
//
// The caller works too: with n threads there are n - 1 others. They spin for a short while between jobs (a layer's
// calls come microseconds apart) and then sleep on a futex. Each has a share of neighbouring tasks before it, so that it
// reads memory as one stream; who has done its own takes the last of another's. So a thread that wakes late or is
// descheduled only leaves more tasks to the rest; the caller never waits for a thread that has not begun. Calls may come
// from any thread: while one job runs, another caller's runs on its own thread alone. A call from within a task does too.
#pragma once

#include <cstdint>

namespace baseload {

using TaskFn = void (*)(void* context, int64_t task, int worker);

// How many threads work on a job, the caller included; set once before the first job (0: one per allowed CPU).
// A later call with another number ends the threads and starts them anew.
void set_threads(int count);
int threads();

// Runs task(context, i, worker) for each i in [0, tasks); worker in [0, threads()) is unique among those running.
void run_tasks(int64_t tasks, TaskFn task, void* context);

template <typename F>
inline void parallel_for(int64_t tasks, const F& f) {
  if (tasks <= 0) return;
  run_tasks(
      tasks, [](void* context, int64_t task, int worker) { (*static_cast<const F*>(context))(task, worker); },
      const_cast<F*>(&f));
}

}  // namespace baseload
