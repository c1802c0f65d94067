/* What this machine can do at most, for bench/engine: bytes read per second and multiply-adds per second, all cores.

   cc -O3 -march=native -pthread probe.c -o probe && ./probe THREADS [MiB per thread]

   Prints one line of JSON. Reading: 512-bit (or widest) loads over an array far larger than the caches. int8: VPDPBUSD
   (or TDPBSSD), bf16: VDPBF16PS (or TDPBF16PS), float32: FMA, on registers only. An operation is a multiply or an add. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef double (*work)(void *, size_t);
static volatile double sink;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double read_all(void *at, size_t bytes) {
#if defined(__AVX512F__)
    __m512i sum[8];
    for (int i = 0; i < 8; i++) sum[i] = _mm512_setzero_si512();
    const char *p = at;
    for (size_t b = 0; b + 512 <= bytes; b += 512)
        _Pragma("GCC unroll 16")
        for (int i = 0; i < 8; i++) sum[i] = _mm512_xor_si512(sum[i], _mm512_load_si512(p + b + 64 * i));
    for (int i = 1; i < 8; i++) sum[0] = _mm512_xor_si512(sum[0], sum[i]);
    return (double)_mm512_reduce_add_epi64(sum[0]);
#else
    uint64_t sum[8] = {0};
    const uint64_t *p = at;
    for (size_t b = 0; b + 8 <= bytes / 8; b += 8)
        for (int i = 0; i < 8; i++) sum[i] ^= p[b + i];
    return (double)(sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7]);
#endif
}

#define ROUNDS 10000000
#define ACCS 12 /* independent sums: more than latency times units */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
/* Each returns operations done. The empty asm keeps the compiler from folding the loop. */
static double fma_f32(void *at, size_t n) {
    float total = 0;
#if defined(__AVX512F__)
#define LANES 16
#define HAVE(i) __m512 a##i = _mm512_set1_ps(i);
#define STEP(i) a##i = _mm512_fmadd_ps(x, y, a##i); __asm__ volatile("" : "+v"(a##i));
#define KEEP(i) total += _mm512_reduce_add_ps(a##i);
    __m512 x = _mm512_set1_ps(1e-3f), y = _mm512_set1_ps(1.0f);
#elif defined(__AVX2__)
#define LANES 8
#define HAVE(i) __m256 a##i = _mm256_set1_ps(i);
#define STEP(i) a##i = _mm256_fmadd_ps(x, y, a##i); __asm__ volatile("" : "+x"(a##i));
#define KEEP(i) total += _mm256_cvtss_f32(a##i);
    __m256 x = _mm256_set1_ps(1e-3f), y = _mm256_set1_ps(1.0f);
#else
#error "the probe knows AVX2 and later"
#endif
    EACH(HAVE)
    for (size_t r = 0; r < n; r++) { EACH(STEP) }
    EACH(KEEP)
    *(volatile float *)at = total;
    return 2.0 * LANES * ACCS * n;
#undef HAVE
#undef STEP
#undef KEEP
}

static double dot_i8(void *at, size_t n) {
    int total = 0;
#if defined(__AVX512VNNI__)
#define HAVE(i) __m512i a##i = _mm512_set1_epi32(i);
#define STEP(i) a##i = _mm512_dpbusd_epi32(a##i, x, y); __asm__ volatile("" : "+v"(a##i));
#define KEEP(i) total += _mm512_reduce_add_epi32(a##i);
    __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(1);
#else
#define HAVE(i) __m256i a##i = _mm256_set1_epi32(i);
#define STEP(i) { __m256i p = _mm256_maddubs_epi16(x, y); __asm__ volatile("" : "+x"(p)); \
    a##i = _mm256_add_epi32(a##i, _mm256_madd_epi16(p, ones)); __asm__ volatile("" : "+x"(a##i)); }
#define KEEP(i) total += _mm256_extract_epi32(a##i, 0);
    __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
#endif
    EACH(HAVE)
    for (size_t r = 0; r < n; r++) { EACH(STEP) }
    EACH(KEEP)
    *(volatile int *)at = total;
    return 2.0 * 4 * LANES * ACCS * n;
#undef HAVE
#undef STEP
#undef KEEP
}

static double dot_bf16(void *at, size_t n) {
#if defined(__AVX512BF16__)
    float total = 0;
#define HAVE(i) __m512 a##i = _mm512_set1_ps(i);
#define STEP(i) a##i = _mm512_dpbf16_ps(a##i, x, y); __asm__ volatile("" : "+v"(a##i));
#define KEEP(i) total += _mm512_reduce_add_ps(a##i);
    __m512bh x = (__m512bh)_mm512_set1_epi16(0x3c00), y = (__m512bh)_mm512_set1_epi16(0x3f80);
    EACH(HAVE)
    for (size_t r = 0; r < n; r++) { EACH(STEP) }
    EACH(KEEP)
    *(volatile float *)at = total;
    return 2.0 * 32 * ACCS * n;
#undef HAVE
#undef STEP
#undef KEEP
#else
    (void)at;
    (void)n;
    return 0;
#endif
}

#if defined(__AMX_INT8__)
struct tiles { uint8_t palette, start, pad[14]; uint16_t colsb[16]; uint8_t rows[16]; } __attribute__((packed));
static void tiles_on(void) {
    static const uint8_t zeros[1024] __attribute__((aligned(64)));
    struct tiles t;
    memset(&t, 0, sizeof t);
    t.palette = 1;
    for (int i = 0; i < 8; i++) { t.colsb[i] = 64; t.rows[i] = 16; }
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&t);
    _tile_loadd(4, zeros, 64); _tile_loadd(5, zeros, 64); _tile_loadd(6, zeros, 64); _tile_loadd(7, zeros, 64);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
}
static double tile_i8(void *at, size_t n) {
    (void)at;
    tiles_on();
    for (size_t r = 0; r < n; r++) {
        _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return 2.0 * 16 * 16 * 64 * 4 * n;
}
static double tile_bf16(void *at, size_t n) {
    (void)at;
    tiles_on();
    for (size_t r = 0; r < n; r++) {
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 2.0 * 16 * 16 * 32 * 4 * n;
}
static int has_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#endif

struct job { work run; void *at; size_t n; int core; double done, began, ended, busy; pthread_barrier_t *gate; };

static void *thread(void *given) {
    struct job *job = given;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(job->core, &set);
    sched_setaffinity(0, sizeof set, &set);
    pthread_barrier_wait(job->gate);
    job->began = now(CLOCK_MONOTONIC);
    double busy = now(CLOCK_THREAD_CPUTIME_ID);
    job->done = job->run(job->at, job->n);
    job->busy = now(CLOCK_THREAD_CPUTIME_ID) - busy;
    job->ended = now(CLOCK_MONOTONIC);
    return 0;
}

/* The best of `times` runs on all threads together: bytes per second of wall time where reading, which shares the memory;
   operations per second of processor time where computing, which shares nothing and may be interrupted. */
static double best(work run, void **at, size_t n, const int *cores, int threads, int times, int is_read) {
    double most = 0;
    for (int t = 0; t < times; t++) {
        pthread_barrier_t gate;
        pthread_barrier_init(&gate, 0, threads);
        pthread_t ids[threads];
        struct job jobs[threads];
        for (int i = 0; i < threads; i++) {
            jobs[i] = (struct job){.run = run, .at = at[i], .n = n, .core = cores[i], .gate = &gate};
            pthread_create(&ids[i], 0, thread, &jobs[i]);
        }
        double began = 1e300, ended = 0, rate = 0;
        for (int i = 0; i < threads; i++) {
            pthread_join(ids[i], 0);
            began = jobs[i].began < began ? jobs[i].began : began;
            ended = jobs[i].ended > ended ? jobs[i].ended : ended;
            rate += jobs[i].done / jobs[i].busy;
            sink += jobs[i].done;
        }
        if (is_read) rate = (double)n * threads / (ended - began);
        pthread_barrier_destroy(&gate);
        if (rate > most) most = rate;
    }
    return most;
}

int main(int count, char **words) {
    int threads = count > 1 ? atoi(words[1]) : 1;
    size_t bytes = (size_t)(count > 2 ? atoi(words[2]) : 256) << 20;
    cpu_set_t set;
    sched_getaffinity(0, sizeof set, &set);
    int cores[threads], found = 0;
    for (int c = 0; c < CPU_SETSIZE && found < threads; c++)
        if (CPU_ISSET(c, &set)) cores[found++] = c;
    for (; found < threads; found++) cores[found] = cores[0];
    void *at[threads];
    for (int i = 0; i < threads; i++) {
        at[i] = aligned_alloc(4096, bytes);
        memset(at[i], i + 1, bytes);
    }
    double read = best(read_all, at, bytes, cores, threads, 5, 1);
    double f32 = best(fma_f32, at, ROUNDS, cores, threads, 3, 0);
    double i8 = best(dot_i8, at, ROUNDS, cores, threads, 3, 0);
    double bf16 = best(dot_bf16, at, ROUNDS, cores, threads, 3, 0);
    const char *i8_by = "AVX2", *bf16_by = bf16 > 0 ? "AVX512-BF16" : "none: float32";
#if defined(__AVX512VNNI__)
    i8_by = "AVX512-VNNI";
#endif
    if (bf16 == 0) bf16 = f32;
#if defined(__AMX_INT8__)
    if (has_tiles()) {
        i8 = best(tile_i8, at, ROUNDS / 8, cores, threads, 3, 0);
        bf16 = best(tile_bf16, at, ROUNDS / 8, cores, threads, 3, 0);
        i8_by = bf16_by = "AMX";
    }
#endif
    printf("{\"read_bytes_per_s\": %.4g, \"int8_ops_per_s\": %.4g, \"bf16_flops_per_s\": %.4g, \"f32_flops_per_s\": %.4g,"
           " \"int8_by\": \"%s\", \"bf16_by\": \"%s\"}\n", read, i8, bf16, f32, i8_by, bf16_by);
    return 0;
}
