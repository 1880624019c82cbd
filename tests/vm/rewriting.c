// A program that makes code while it runs, as just-in-time compilers do: pages that are writable and executable by turns
// (mprotect), pages mapped twice (memfd), code that is patched under threads that run it, and code that moves. Each answer
// is a line.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS = 3 };

typedef long (*function)(long);

// movz x1, #value; a loop that adds it x0 times; x0 is the sum.
static void emit(uint32_t *at, unsigned value) {
    const uint32_t code[] = {
        0xd2800001 | (value & 0xffff) << 5,  // movz x1, #value
        0xd2800002,                          // movz x2, #0
        0xb4000080,                          // cbz x0, 4 further
        0x8b010042,                          // add x2, x2, x1
        0xd1000400,                          // sub x0, x0, #1
        0x17fffffd,                          // b to the cbz
        0xaa0203e0,                          // mov x0, x2
        0xd65f03c0,                          // ret
    };
    memcpy(at, code, sizeof code);
}

static function as_function(void *at) {
    function f;
    memcpy(&f, &at, sizeof f);
    return f;
}

static void flush(void *run, size_t bytes) { __builtin___clear_cache((char *)run, (char *)run + bytes); }

static void say(const char *what, long wrong) { printf("%s: %s\n", what, wrong ? "wrong" : "ok"); }

// One page, written and run by turns. Every tenth function gets hot.
static long flips(void) {
    long wrong = 0;
    uint32_t *page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (unsigned n = 1; n <= 400; n++) {
        wrong += mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0;
        for (int k = 0; k < 16; k++) emit(page + 16 * k, n * 7 + k);
        wrong += mprotect(page, PAGE, PROT_READ | PROT_EXEC) != 0;
        flush(page, PAGE);
        long turns = n % 10 ? 3 : 5000;
        for (int k = 0; k < 16; k++) wrong += as_function(page + 16 * k)(turns) != turns * (n * 7 + k);
    }
    munmap(page, PAGE);
    return wrong;
}

// The same page writable at one address and executable at another.
static long twice(void) {
    long wrong = 0;
    int file = memfd_create("code", MFD_CLOEXEC);
    wrong += ftruncate(file, PAGE) != 0;
    uint32_t *write = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint32_t *run = mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    for (unsigned n = 1; n <= 2000; n++) {
        emit(write, n);
        flush(run, 32);
        long turns = n % 50 ? 2 : 4000;
        wrong += as_function(run)(turns) != turns * (long)n;
    }
    munmap(write, PAGE);
    munmap(run, PAGE);
    close(file);
    return wrong;
}

// New code where other code was: the mapping goes, and another comes to its address.
static long moves(void) {
    long wrong = 0;
    void *place = mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (unsigned n = 1; n <= 300; n++) {
        uint32_t *page =
            mmap(place, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        emit(page, n);
        wrong += mprotect(page, PAGE, PROT_READ | PROT_EXEC) != 0;
        flush(page, 32);
        long turns = n % 10 ? 2 : 4000;
        wrong += as_function(page)(turns) != turns * (long)n;
    }
    munmap(place, PAGE);
    return wrong;
}

static uint32_t *patched;
static function entry;
static atomic_int done;
static atomic_long errors, calls;

// Runs what is there: either answer is right, no other.
static void *caller(void *unused) {
    while (!atomic_load_explicit(&done, memory_order_relaxed)) {
        long got = entry(0);
        if (got != 1 && got != 2) atomic_fetch_add(&errors, 1);
        atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
    }
    return unused;
}

// A branch that is patched between two targets while threads run it, which the architecture allows without stopping
// them (B2.2.5); when a change is complete, the thread that made it sees it.
static long patches(void) {
    long wrong = 0;
    int file = memfd_create("code", MFD_CLOEXEC);
    wrong += ftruncate(file, PAGE) != 0;
    patched = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint32_t *run = mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    const uint32_t code[] = {
        0x14000001,              // b to the next
        0xd2800020, 0xd65f03c0,  // movz x0, #1; ret
        0xd2800040, 0xd65f03c0,  // movz x0, #2; ret
    };
    memcpy(patched, code, sizeof code);
    flush(run, sizeof code);
    entry = as_function(run);
    pthread_t threads[THREADS];
    for (int n = 0; n < THREADS; n++) wrong += pthread_create(&threads[n], 0, caller, 0) != 0;
    for (unsigned n = 0; n < 2000; n++) {
        uint32_t branch = 0x14000001 + (n & 1) * 2;
        __atomic_store_n(patched, branch, __ATOMIC_RELEASE);
        flush(run, 4);
        wrong += entry(0) != 1 + (long)(n & 1);
    }
    while (atomic_load(&calls) < 1000) usleep(1000);
    atomic_store(&done, 1);
    for (int n = 0; n < THREADS; n++) pthread_join(threads[n], 0);
    return wrong + atomic_load(&errors);
}

int main(void) {
    say("flips", flips());
    say("twice", twice());
    say("moves", moves());
    say("patches", patches());
    return 0;
}
