/* Holds patterns in every scalable vector and predicate register, and a signed pointer, while the guest may be captured;
   says so when one of them has changed. The argument is the number of rounds; each holds them for a moment without a
   system call, which would be free to change them. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#pragma GCC target("arch=armv8.3-a+sve")

enum { Z = 32, P = 16, MOST = 256, SPIN = 4000000 };

struct registers {
    uint8_t z[Z * MOST];
    uint8_t p[P * MOST / 8];
    uint8_t ffr[MOST / 8];
};

static struct registers before, after;

#define ALL(each) \
    each(0) each(1) each(2) each(3) each(4) each(5) each(6) each(7) \
    each(8) each(9) each(10) each(11) each(12) each(13) each(14) each(15)
#define HIGH(each) \
    each(16) each(17) each(18) each(19) each(20) each(21) each(22) each(23) \
    each(24) each(25) each(26) each(27) each(28) each(29) each(30) each(31)
#define LOAD_Z(n) "ldr z" #n ", [%[z], #" #n ", mul vl]\n"
#define LOAD_P(n) "ldr p" #n ", [%[p], #" #n ", mul vl]\n"
#define STORE_Z(n) "str z" #n ", [%[zs], #" #n ", mul vl]\n"
#define STORE_P(n) "str p" #n ", [%[ps], #" #n ", mul vl]\n"
#define CLOBBER_Z(n) , "z" #n
#define CLOBBER_P(n) , "p" #n

static void hold(void)
{
    uint64_t spin = SPIN;
    __asm__ volatile(
        "ldr p0, [%[ffr]]\n"
        "wrffr p0.b\n"
        ALL(LOAD_P) ALL(LOAD_Z) HIGH(LOAD_Z)
        "1: subs %[spin], %[spin], #1\n"
        "b.ne 1b\n"
        ALL(STORE_Z) HIGH(STORE_Z) ALL(STORE_P)
        "rdffr p0.b\n"
        "str p0, [%[ffrs]]\n"
        : [spin] "+r"(spin)
        : [z] "r"(before.z), [p] "r"(before.p), [ffr] "r"(before.ffr),
          [zs] "r"(after.z), [ps] "r"(after.p), [ffrs] "r"(after.ffr)
        : "memory", "cc" ALL(CLOBBER_Z) HIGH(CLOBBER_Z) ALL(CLOBBER_P));
}

static uint64_t signed_pointer(uint64_t pointer)
{
    __asm__("pacia %0, %1" : "+r"(pointer) : "r"(0x1234ul));
    return pointer;
}

static uint64_t checked_pointer(uint64_t pointer)
{
    __asm__("autia %0, %1" : "+r"(pointer) : "r"(0x1234ul));
    return pointer;
}

int main(int count, char **arguments)
{
    long rounds = count > 1 ? atol(arguments[1]) : 1;
    unsigned long hardware = getauxval(AT_HWCAP);
    if (!(hardware & HWCAP_SVE)) {
        puts("no SVE");
        return 1;
    }
    uint64_t length, pointer = (uint64_t)&before, mark = signed_pointer(pointer);
    /* Of a few bits a signature may be what is there already. */
    for (int tries = 0; tries < 16 && mark == pointer; tries++)
        mark = signed_pointer(++pointer);
    __asm__("rdvl %0, #1" : "=r"(length));
    for (long round = 0; round < rounds; round++) {
        for (unsigned n = 0; n < Z * length; n++)
            before.z[n] = (uint8_t)(n * 7 + n / length + round);
        for (unsigned n = 0; n < P * length / 8; n++)
            before.p[n] = (uint8_t)(n * 13 + round);
        /* A first-fault register holds ones, then zeros. */
        for (unsigned n = 0; n < length / 8; n++)
            before.ffr[n] = n < 1 + (unsigned)round % (length / 8) ? 0xff : 0;
        memset(&after, 0, sizeof after);
        hold();
        if (memcmp(&before, &after, sizeof before) || signed_pointer(pointer) != mark || checked_pointer(mark) != pointer) {
            printf("changed in round %ld\n", round);
            return 1;
        }
    }
    printf("held %lu bytes, %s\n", (unsigned long)length, mark == pointer ? "unsigned" : "signed");
    return 0;
}
