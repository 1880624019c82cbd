/* A program whose result follows from its own state alone: chains of integers, floating point in every rounding mode,
   vectors and extended precision in threads that wait for timers and for each other, while a signal handler computes
   other things in the same registers. Prints one line; the argument is the number of rounds. */
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

enum { THREADS = 3, STEPS = 60000 };

typedef uint32_t words __attribute__((vector_size(16)));
typedef double doubles __attribute__((vector_size(16)));

struct chain {
    int number;
    uint64_t integer;
    double scalar;
    long double extended;
    words integers;
    doubles scalars;
};

static struct chain chains[THREADS];
static pthread_barrier_t barrier;
static long rounds;
static volatile sig_atomic_t interrupted;
static volatile double noise = 1.5;

/* Leaves the registers that it uses full of what belongs to nobody. */
static void interrupt(int number)
{
    doubles other = {noise, -noise};
    for (int n = 0; n < 20; n++)
        other = other * other - 0.5;
    noise = other[0] > 1e9 || other[0] != other[0] ? 1.5 : other[0];
    interrupted += number != 0;
}

static void turn(struct chain *chain)
{
    for (int n = 0; n < STEPS; n++) {
        chain->integer = chain->integer * 0x5851f42d4c957f2d + 0x14057b7ef767814f;
        chain->integer ^= chain->integer >> 29;
        chain->scalar = chain->scalar * 0.7500001 + (double)(chain->integer >> 11) * 0x1p-53 / 3.0;
        chain->extended = chain->extended / 1.1L + chain->scalar;
        chain->integers = chain->integers * 0x9e3779b1u + (uint32_t)chain->integer;
        chain->scalars = chain->scalars / 1.7 + chain->scalar;
    }
}

static void *run(void *argument)
{
    static const int modes[THREADS] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    struct chain *chain = argument;
    if (fesetround(modes[chain->number]))
        abort();
    for (long round = 0; round < rounds; round++) {
        turn(chain);
        struct timespec pause = {0, 1000000 * (1 + (round + chain->number) % 5)};
        while (nanosleep(&pause, &pause))
            ;
        /* Each goes on from what its neighbour has come to. */
        pthread_barrier_wait(&barrier);
        uint64_t other = chains[(chain->number + 1) % THREADS].integer;
        pthread_barrier_wait(&barrier);
        chain->integer += other;
        if (fegetround() != modes[chain->number])
            chain->integer = 0;
    }
    return NULL;
}

static uint64_t mixed(uint64_t sum, const void *bytes, size_t size)
{
    for (size_t n = 0; n < size; n++)
        sum = (sum ^ ((const uint8_t *)bytes)[n]) * 0x100000001b3;
    return sum;
}

int main(int count, char **arguments)
{
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 3000}, {0, 3000}};
    pthread_t threads[THREADS];
    rounds = count > 1 ? atol(arguments[1]) : 1;
    if (sigaction(SIGALRM, &action, NULL) || pthread_barrier_init(&barrier, NULL, THREADS))
        abort();
    if (setitimer(ITIMER_REAL, &often, NULL))
        abort();
    for (int n = 0; n < THREADS; n++) {
        chains[n] = (struct chain){n, 0x123456789abcdef1 + n, 0.5 + n, 0.25L * n, {n, 1, 2, 3}, {n, 0.1}};
        if (pthread_create(&threads[n], NULL, run, &chains[n]))
            abort();
    }
    uint64_t sum = 0xcbf29ce484222325;
    for (int n = 0; n < THREADS; n++) {
        if (pthread_join(threads[n], NULL))
            abort();
        double low = (double)chains[n].extended, rest = (double)(chains[n].extended - low);
        sum = mixed(sum, &chains[n].integer, sizeof(uint64_t));
        sum = mixed(sum, &chains[n].scalar, sizeof(double));
        sum = mixed(sum, &low, sizeof low);
        sum = mixed(sum, &rest, sizeof rest);
        sum = mixed(sum, &chains[n].integers, sizeof(words));
        sum = mixed(sum, &chains[n].scalars, sizeof(doubles));
    }
    printf("%016llx %s\n", (unsigned long long)sum, interrupted ? "interrupted" : "undisturbed");
    return 0;
}
