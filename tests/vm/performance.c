// What perf asks of a kernel and its CPU: counts of instructions and cycles, and samples. Each answer is a line.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int event(uint64_t config, uint64_t period) {
    struct perf_event_attr what = {.type = PERF_TYPE_HARDWARE, .size = sizeof what, .config = config};
    what.disabled = what.exclude_kernel = what.exclude_hv = 1;
    what.sample_period = period;
    what.sample_type = period ? PERF_SAMPLE_IP : 0;
    int fd = syscall(SYS_perf_event_open, &what, 0, -1, -1, 0);
    if (fd < 0) {
        printf("event: %s\n", strerror(errno));
        exit(1);
    }
    return fd;
}

// Two instructions a turn.
__attribute__((noinline, noclone)) static void turns(long n) {
    __asm__ volatile("1: subs %0, %0, #1\nb.ne 1b" : "+r"(n)::"cc");
}

static uint64_t counted(int fd, long n) {
    uint64_t count = 0;
    ioctl(fd, PERF_EVENT_IOC_RESET, 0);
    ioctl(fd, PERF_EVENT_IOC_ENABLE, 0);
    turns(n);
    ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
    if (read(fd, &count, sizeof count) != sizeof count)
        count = 0;
    return count;
}

int main(int argc, char **argv) {
    long more = argc > 1 ? atol(argv[1]) : 1000000;
    static const char *names[] = {"instructions", "cycles"};
    static const uint64_t events[] = {PERF_COUNT_HW_INSTRUCTIONS, PERF_COUNT_HW_CPU_CYCLES};
    for (int n = 0; n < 2; n++) {
        int fd = event(events[n], 0);
        // What the calls cost is in both.
        printf("%s: %ld\n", names[n], (long)(counted(fd, 1000 + more) - counted(fd, 1000)));
        close(fd);
    }
    int fd = event(PERF_COUNT_HW_INSTRUCTIONS, 100000);
    struct perf_event_mmap_page *ring = mmap(NULL, 2 * getpagesize(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ring == MAP_FAILED)
        return 1;
    ioctl(fd, PERF_EVENT_IOC_ENABLE, 0);
    turns(more);
    ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
    int samples = 0, here = 0;
    const char *records = (const char *)ring + getpagesize();
    for (uint64_t at = 0; at < ring->data_head;) {
        const struct perf_event_header *head = (const void *)(records + at);
        uint64_t where;
        if (head->type == PERF_RECORD_SAMPLE) {
            memcpy(&where, head + 1, sizeof where);
            samples++;
            here += where - (uint64_t)turns < 64;
        }
        at += head->size;
    }
    printf("samples: %d\nin the loop: %d\n", samples, here);
    return 0;
}
