/* Operations on a directory, each said to be done on the console: `shares DIRECTORY FILES MEGABYTES`. The directory has
 * files tree/N/fileN, a hundred to a directory, and a file "large". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, SMALL = 4096 };

static char block[BLOCK];

static void mark(const char *what) {
    printf("bench: %s 0\n", what);
    fflush(stdout);
}

static void fail(const char *what) {
    perror(what);
    printf("bench: failed 1\n");
    exit(1);
}

static void forget(void) {
    int file = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (file < 0 || write(file, "3", 1) != 1) fail("drop_caches");
    close(file);
}

static int opened(const char *path, int flags) {
    int file = open(path, flags, 0644);
    if (file < 0) fail(path);
    return file;
}

int main(int argc, char **argv) {
    if (argc < 4 || chdir(argv[1])) fail("usage");
    long files = atol(argv[2]), bytes = atol(argv[3]) * BLOCK;
    char path[64];
    struct stat found;
    struct statx asked;

    forget();
    mark("begin");
    for (long n = 0; n < files; n++) {
        snprintf(path, sizeof path, "tree/%ld/file%ld", n / 100, n);
        if (stat(path, &found)) fail(path);
    }
    mark("lookup");
    for (long n = 0; n < files; n++)
        if (statx(AT_FDCWD, "large", AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &asked)) fail("statx");
    mark("getattr");
    for (int again = 0; again < 2; again++) {
        for (long n = 0; n < files; n++) {
            snprintf(path, sizeof path, "tree/%ld/file%ld", n / 100, n);
            int file = opened(path, O_RDONLY);
            if (read(file, block, SMALL) < 0) fail(path);
            close(file);
        }
        mark(again ? "read_small_again" : "read_small");
    }
    if (mkdir("made", 0755)) fail("made");
    mark("made");
    for (long n = 0; n < files; n++) {
        snprintf(path, sizeof path, "made/%ld", n);
        close(opened(path, O_WRONLY | O_CREAT));
    }
    mark("create");
    for (long n = 0; n < files; n++) {
        snprintf(path, sizeof path, "made/%ld", n);
        if (unlink(path)) fail(path);
    }
    mark("unlink");
    rmdir("made");
    forget();
    int file = opened("large", O_RDONLY);
    mark("forgot");
    for (long at = 0; at < bytes; at += BLOCK)
        if (pread(file, block, BLOCK, at) != BLOCK) fail("large");
    mark("sequential_read");
    close(file);
    file = opened("new", O_RDWR | O_CREAT | O_TRUNC);
    mark("new");
    for (long at = 0; at < bytes; at += BLOCK)
        if (pwrite(file, block, BLOCK, at) != BLOCK) fail("new");
    mark("sequential_write");
    srandom(1);
    for (long n = 0; n < files; n++)
        if (pwrite(file, block, SMALL, random() % (bytes / SMALL) * SMALL) != SMALL) fail("new");
    mark("random_write");
    close(file);
    unlink("new");
    forget();
    file = opened("large", O_RDONLY);
    posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
    mark("forgot_again");
    for (long n = 0; n < files; n++)
        if (pread(file, block, SMALL, random() % (bytes / SMALL) * SMALL) != SMALL) fail("large");
    mark("random_read");
    close(file);
    return 0;
}
