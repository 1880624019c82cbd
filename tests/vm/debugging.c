// What a debugger asks of a kernel and its CPU: single steps, software breakpoints, hardware breakpoints and
// watchpoints. Each answer is a line.
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

volatile long watched;
// What an armed debugger waits for, if anything: a file.
static const char *until;

__attribute__((noinline, noclone)) long twice(long x) {
    __asm__ volatile("" : "+r"(x));
    return 2 * x;
}

// A child that stops, and then runs `body` and ends with 5.
static pid_t traced(void (*body)(void)) {
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        body();
        _exit(5);
    }
    int status;
    waitpid(child, &status, 0);
    return child;
}

// Lets the child go on; whether it stopped with SIGTRAP again.
static int go_on(pid_t child, int request, int *status) {
    ptrace(request, child, 0, 0);
    waitpid(child, status, 0);
    return WIFSTOPPED(*status) && WSTOPSIG(*status) == SIGTRAP;
}

static void count(void) {
    __asm__ volatile("mov x0, #0\n1: add x0, x0, #1\ncmp x0, #50\nb.ne 1b" ::: "x0", "cc");
}

static void call(void) {
    for (long n = 0; n < 5; n++) watched = twice(n);
}

// 50 turns of three instructions, and not many more around them.
static void steps(void) {
    int status, steps = 0;
    pid_t child = traced(count);
    while (go_on(child, PTRACE_SINGLESTEP, &status) && steps < 5000) steps++;
    printf("steps: %s\n", steps > 150 && steps < 1000 && WIFEXITED(status) && WEXITSTATUS(status) == 5 ? "ok" : "wrong");
}

// Each stop steps over the instruction that the breakpoint stands for.
static void breakpoint(void) {
    int status, hits = 0;
    pid_t child = traced(call);
    long code = ptrace(PTRACE_PEEKTEXT, child, (void *)twice, 0);
    long brk = (code & ~0xffffffffL) | 0xd4200000;
    ptrace(PTRACE_POKETEXT, child, (void *)twice, brk);
    while (go_on(child, PTRACE_CONT, &status)) {
        hits++;
        ptrace(PTRACE_POKETEXT, child, (void *)twice, code);
        if (!go_on(child, PTRACE_SINGLESTEP, &status)) break;
        ptrace(PTRACE_POKETEXT, child, (void *)twice, brk);
    }
    printf("breakpoint: %s\n", hits == 5 && WIFEXITED(status) ? "ok" : "wrong");
}

// Arms the first comparison of a kind and counts the stops.
static void hardware(const char *name, int kind, volatile void *at, unsigned control, int most) {
    struct {
        unsigned info, pad;
        struct {
            unsigned long address;
            unsigned control, pad;
        } one[16];
    } regs;
    memset(&regs, 0, sizeof regs);
    struct iovec vector = {&regs, sizeof regs};
    int status, hits = 0;
    pid_t child = traced(call);
    if (ptrace(PTRACE_GETREGSET, child, kind, &vector) != 0) {
        printf("%s: none, %s\n", name, strerror(errno));
    } else {
        printf("%ss: %u\n", name, regs.info & 255);
        vector.iov_len = 8 + sizeof regs.one[0];
        regs.one[0].address = (unsigned long)at;
        regs.one[0].control = control;
        if (ptrace(PTRACE_SETREGSET, child, kind, &vector) != 0) printf("%s: %s\n", name, strerror(errno));
        if (until) {
            printf("armed: %s\n", name);
            fflush(stdout);
            while (access(until, F_OK) != 0) usleep(1000);
        }
        // Linux reports before the instruction, and steps over it when it goes on.
        while (hits < most && go_on(child, PTRACE_CONT, &status)) hits++;
        printf("%s: %s\n", name, hits == most ? "ok" : "wrong");
    }
    ptrace(PTRACE_KILL, child, 0, 0);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
}

// With one argument, what a debugger is to look at; with two, one kind ("b", "w") that is armed and waits for a file.
int main(int argc, char **argv) {
    if (argc == 2) {
        call();
        return 5;
    }
    char only = 0;
    if (argc > 2) {
        only = argv[1][0];
        until = argv[2];
    } else {
        steps();
        breakpoint();
    }
    // Enabled at EL0: four bytes of code, eight of data that is stored.
    if (only != 'w') hardware("hardware breakpoint", 0x402, (void *)twice, 0xf << 5 | 2 << 1 | 1, 1);
    if (only != 'b') hardware("watchpoint", 0x403, &watched, 0xff << 5 | 2 << 3 | 2 << 1 | 1, 5);
    return 0;
}
