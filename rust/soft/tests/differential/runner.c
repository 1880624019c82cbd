/* Runs instruction sequences from given register states and reports the states after them: the oracle's side of the
 * differential test. Speaks batches of fixed-size records on standard input and output; see oracle.rs. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define INSNS 16
#define MEMORY 1024
#define BATCH 512
/* One sequence with the branch that ends it. */
#define SLOT (4 * INSNS + 16)

struct state {
    uint64_t x[29];
    uint64_t sp;
    uint64_t nzcv, fpcr, fpsr;
    /* Result: signal number, and the index of the instruction that raised it. */
    uint32_t signal, at;
    unsigned __int128 v[32];
    uint8_t memory[MEMORY];
};

struct request {
    struct state state;
    uint32_t count, pad;
    uint32_t insns[INSNS];
    uint64_t pad2;
};

/* What the sequence works on: x30 points here while it runs. */
struct context {
    uint64_t x[29];
    uint64_t sp;
    uint64_t nzcv, fpcr, fpsr;
    uint64_t host_sp;
    unsigned __int128 v[32];
} __attribute__((aligned(16)));

static struct context context;
static struct request requests[BATCH];
static struct state results[BATCH];
static sigjmp_buf escape;
static volatile uint32_t caught, caught_at;
static uint8_t *volatile slot_now;
static uint8_t *memory_base;

void enter(struct context *c, void *code);
void leave(void);

__asm__(
    ".arch armv8.2-a\n"
    ".text\n.balign 4\n"
    ".global enter\nenter:\n"
    "stp x29, x30, [sp, #-160]!\n"
    "stp x19, x20, [sp, #16]\nstp x21, x22, [sp, #32]\nstp x23, x24, [sp, #48]\n"
    "stp x25, x26, [sp, #64]\nstp x27, x28, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x30, x0\nmov x29, x1\n"
    "mov x2, sp\nstr x2, [x30, #264]\n"
    "add x0, x30, #272\n"
    "ldp q0, q1, [x0, #0]\nldp q2, q3, [x0, #32]\nldp q4, q5, [x0, #64]\nldp q6, q7, [x0, #96]\n"
    "ldp q8, q9, [x0, #128]\nldp q10, q11, [x0, #160]\nldp q12, q13, [x0, #192]\nldp q14, q15, [x0, #224]\n"
    "ldp q16, q17, [x0, #256]\nldp q18, q19, [x0, #288]\nldp q20, q21, [x0, #320]\nldp q22, q23, [x0, #352]\n"
    "ldp q24, q25, [x0, #384]\nldp q26, q27, [x0, #416]\nldp q28, q29, [x0, #448]\nldp q30, q31, [x0, #480]\n"
    "ldr x0, [x30, #232]\nmov sp, x0\n"
    "ldr x0, [x30, #240]\nmsr nzcv, x0\n"
    "ldr x0, [x30, #248]\nmsr fpcr, x0\n"
    "ldr x0, [x30, #256]\nmsr fpsr, x0\n"
    "ldp x0, x1, [x30, #0]\nldp x2, x3, [x30, #16]\nldp x4, x5, [x30, #32]\nldp x6, x7, [x30, #48]\n"
    "ldp x8, x9, [x30, #64]\nldp x10, x11, [x30, #80]\nldp x12, x13, [x30, #96]\nldp x14, x15, [x30, #112]\n"
    "ldp x16, x17, [x30, #128]\nldp x18, x19, [x30, #144]\nldp x20, x21, [x30, #160]\nldp x22, x23, [x30, #176]\n"
    "ldp x24, x25, [x30, #192]\nldp x26, x27, [x30, #208]\nldr x28, [x30, #224]\n"
    "br x29\n"
    ".global leave\nleave:\n"
    "stp x0, x1, [x30, #0]\nstp x2, x3, [x30, #16]\nstp x4, x5, [x30, #32]\nstp x6, x7, [x30, #48]\n"
    "stp x8, x9, [x30, #64]\nstp x10, x11, [x30, #80]\nstp x12, x13, [x30, #96]\nstp x14, x15, [x30, #112]\n"
    "stp x16, x17, [x30, #128]\nstp x18, x19, [x30, #144]\nstp x20, x21, [x30, #160]\nstp x22, x23, [x30, #176]\n"
    "stp x24, x25, [x30, #192]\nstp x26, x27, [x30, #208]\nstr x28, [x30, #224]\n"
    "mov x0, sp\nstr x0, [x30, #232]\n"
    "mrs x0, nzcv\nstr x0, [x30, #240]\n"
    "mrs x0, fpcr\nstr x0, [x30, #248]\n"
    "mrs x0, fpsr\nstr x0, [x30, #256]\n"
    "add x0, x30, #272\n"
    "stp q0, q1, [x0, #0]\nstp q2, q3, [x0, #32]\nstp q4, q5, [x0, #64]\nstp q6, q7, [x0, #96]\n"
    "stp q8, q9, [x0, #128]\nstp q10, q11, [x0, #160]\nstp q12, q13, [x0, #192]\nstp q14, q15, [x0, #224]\n"
    "stp q16, q17, [x0, #256]\nstp q18, q19, [x0, #288]\nstp q20, q21, [x0, #320]\nstp q22, q23, [x0, #352]\n"
    "stp q24, q25, [x0, #384]\nstp q26, q27, [x0, #416]\nstp q28, q29, [x0, #448]\nstp q30, q31, [x0, #480]\n"
    "ldr x0, [x30, #264]\nmov sp, x0\n"
    "msr fpcr, xzr\nmsr fpsr, xzr\n"
    "ldp x19, x20, [sp, #16]\nldp x21, x22, [sp, #32]\nldp x23, x24, [sp, #48]\n"
    "ldp x25, x26, [sp, #64]\nldp x27, x28, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "ldp x29, x30, [sp], #160\n"
    "ret\n");

static void on_signal(int number, siginfo_t *info, void *uc) {
    (void)info;
    uint8_t *pc = (uint8_t *)((ucontext_t *)uc)->uc_mcontext.pc;
    caught = number;
    caught_at = (uint32_t)((pc - slot_now) / 4);
    siglongjmp(escape, 1);
}

static int transfer(int out, void *data, size_t length) {
    for (uint8_t *p = data; length;) {
        ssize_t n = out ? write(1, p, length) : read(0, p, length);
        if (n <= 0)
            return 0;
        p += n;
        length -= n;
    }
    return 1;
}

int main(int argc, char **argv) {
    /* The address at which sequences find their memory. */
    uintptr_t base = argc > 1 ? strtoull(argv[1], 0, 0) : 0x50000000;
    memory_base = mmap((void *)base, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    uint8_t *code = mmap(0, BATCH * SLOT, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_base == MAP_FAILED || code == MAP_FAILED)
        return 2;
    stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    sigaltstack(&stack, 0);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    int signals[] = {SIGILL, SIGSEGV, SIGBUS, SIGTRAP, SIGFPE};
    for (unsigned n = 0; n < sizeof signals / sizeof *signals; n++)
        sigaction(signals[n], &action, 0);

    uint32_t count;
    while (transfer(0, &count, sizeof count)) {
        if (count > BATCH || !transfer(0, requests, count * sizeof *requests))
            return 3;
        /* All code of a batch before the first run: a write to a page that has been executed is dear. */
        for (uint32_t n = 0; n < count; n++) {
            uint32_t *slot = (uint32_t *)(code + n * SLOT);
            uint32_t length = requests[n].count > INSNS ? INSNS : requests[n].count;
            memcpy(slot, requests[n].insns, 4 * length);
            slot[length] = 0x5800005d; /* ldr x29, .+8 */
            slot[length + 1] = 0xd61f03a0; /* br x29 */
            uint64_t target = (uintptr_t)leave;
            memcpy(slot + length + 2, &target, 8);
        }
        __builtin___clear_cache((char *)code, (char *)code + count * SLOT);
        for (uint32_t n = 0; n < count; n++) {
            struct state *s = &requests[n].state, *r = &results[n];
            memcpy(context.x, s->x, sizeof s->x);
            context.sp = s->sp, context.nzcv = s->nzcv, context.fpcr = s->fpcr, context.fpsr = s->fpsr;
            memcpy(context.v, s->v, sizeof s->v);
            memcpy(memory_base, s->memory, MEMORY);
            caught = 0;
            slot_now = code + n * SLOT;
            if (!sigsetjmp(escape, 0))
                enter(&context, slot_now);
            else
                __asm__ volatile("msr fpcr, xzr\nmsr fpsr, xzr");
            memset(r, 0, sizeof *r);
            r->signal = caught, r->at = caught ? caught_at : 0;
            if (!caught) {
                memcpy(r->x, context.x, sizeof r->x);
                r->sp = context.sp, r->nzcv = context.nzcv, r->fpcr = context.fpcr, r->fpsr = context.fpsr;
                memcpy(r->v, context.v, sizeof r->v);
                memcpy(r->memory, memory_base, MEMORY);
            }
        }
        if (!transfer(1, results, count * sizeof *results))
            return 4;
    }
    return 0;
}
