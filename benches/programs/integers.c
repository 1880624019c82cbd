// Integer work: sorts, searches, hashes and parses in memory, with the branches and loads that programs have.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS 4096

static uint32_t words[WORDS], table[WORDS * 2];

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t hash(const char *s) {
    uint32_t h = 2166136261u;
    while (*s) h = (h ^ (unsigned char)*s++) * 16777619u;
    return h;
}

int main(int argc, char **argv) {
    uint32_t x = 1, sum = 0;
    char text[32];
    for (int n = argc > 1 ? atoi(argv[1]) : 10; n > 0; n--) {
        memset(table, 0, sizeof table);
        for (int i = 0; i < WORDS; i++) {
            x ^= x << 13, x ^= x >> 17, x ^= x << 5;
            snprintf(text, sizeof text, "%u:%x", x, x >> 7);
            words[i] = hash(text) ^ (uint32_t)strtoul(text, NULL, 10);
        }
        qsort(words, WORDS, sizeof *words, compare);
        for (int i = 0; i < WORDS; i++) {
            uint32_t at = words[i] % (2 * WORDS - 1);
            while (table[at] && table[at] != words[i]) at = (at + 1) % (2 * WORDS);
            table[at] = words[i];
            sum += at + __builtin_popcount(words[i]);
        }
    }
    printf("%u\n", sum);
}
