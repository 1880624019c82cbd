// PID 1 of a benchmark guest: runs one command between two marks on the kernel's console, then powers off.
// The command is what follows "--" on the kernel's command line; without one only the first mark is made. What comes before it
// and is not measured is in /setup, if there is one.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SETUP "/setup"
#define DATA "/data"
#define DATA_BYTES (64 << 20)

static int console = -1;

// One line, written by the kernel before this returns.
static void mark(const char *what, int status) {
    char line[64];
    int n = snprintf(line, sizeof line, "<0>bench: %s %d\n", what, status);
    if (write(console, line, n) != n) _exit(1);
}

// A file that no compression or deduplication shortens (xorshift64).
static int make_data(void) {
    static uint64_t block[8192];
    uint64_t x = 88172645463325252u;
    int fd = open(DATA, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) return -1;
    for (size_t done = 0; done < DATA_BYTES; done += sizeof block) {
        for (size_t i = 0; i < sizeof block / sizeof *block; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            block[i] = x;
        }
        if (write(fd, block, sizeof block) != (ssize_t)sizeof block) return -1;
    }
    return close(fd);
}

static int run(char **command) {
    pid_t child = fork();
    if (child == 0) {
        char *environment[] = {"PATH=/usr/bin:/bin", "HOME=/", NULL};
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0), dup2(null, 1), dup2(null, 2);
        execve(command[0], command, environment);
        _exit(127);
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
    mkdir("/dev", 0755), mkdir("/proc", 0755);
    if (mount("dev", "/dev", "devtmpfs", 0, NULL) || mount("proc", "/proc", "proc", 0, NULL)) return 1;
    console = open("/dev/kmsg", O_WRONLY);
    mark("ready", 0);
    if (argc > 1) {
        for (int i = 2; i < argc; i++)
            if (!strcmp(argv[i], DATA) && make_data()) mark("failed", 0);
        char *setup[] = {SETUP, NULL};
        int status = access(SETUP, X_OK) ? 0 : run(setup);
        if (status) mark("setup", status);
        mark("begin", 0);
        mark("end", run(argv + 1));
    }
    reboot(RB_POWER_OFF);
}
