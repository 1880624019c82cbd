/* Writes to a directory, makes each change last, and says its number when it does: "3", a line each, with nothing held back.
 *
 * What is in the directory after any number of changes follows from the number alone, so that whoever has heard them knows what must
 * be there (tests/storage/acknowledged.py). Ends at the first error, which it names.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 64, FILES = 20, RECORD = 32 };

static void must(int done, const char *what)
{
    if (!done) {
        perror(what);
        exit(1);
    }
}

static void lasts(int fd, int data_alone)
{
    must((data_alone ? fdatasync(fd) : fsync(fd)) == 0, "fsync");
}

static void append(int log, int number)
{
    char record[RECORD + 1];
    snprintf(record, sizeof record, "%0*d\n", RECORD - 1, number);
    must(write(log, record, RECORD) == RECORD, "append");
    lasts(log, 1);
}

static void overwrite(int blocks, int number)
{
    int block[BLOCK / sizeof(int)];
    for (size_t n = 0; n < BLOCK / sizeof(int); n++)
        block[n] = number;
    must(pwrite(blocks, block, BLOCK, (off_t)(number * 7 % BLOCKS) * BLOCK) == BLOCK, "overwrite");
    lasts(blocks, 1);
}

/* A file of a size of its own takes the place of another. */
static void replace(int top, int number)
{
    char name[16], line[16];
    snprintf(name, sizeof name, "file.%d", number % FILES);
    snprintf(line, sizeof line, "%d\n", number);
    int fd = openat(top, "new", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    must(fd >= 0, "new");
    for (int n = 0; n < number * 13 % 3000 + 1; n++)
        must(write(fd, line, strlen(line)) == (ssize_t)strlen(line), "write");
    lasts(fd, 0);
    close(fd);
    must(renameat(top, "new", top, name) == 0, "rename");
    lasts(top, 0);
}

static void drop(int top, int number)
{
    char name[16];
    snprintf(name, sizeof name, "file.%d", number % FILES);
    unlinkat(top, name, 0);
    lasts(top, 0);
}

int main(int argc, char **argv)
{
    must(argc == 2 && (mkdir(argv[1], 0700) == 0), "mkdir");
    int top = open(argv[1], O_RDONLY | O_DIRECTORY);
    must(top >= 0, argv[1]);
    int log = openat(top, "log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    int blocks = openat(top, "blocks", O_WRONLY | O_CREAT, 0600);
    must(log >= 0 && blocks >= 0 && ftruncate(blocks, (off_t)BLOCK * BLOCKS) == 0, "open");
    lasts(log, 0);
    lasts(blocks, 0);
    lasts(top, 0);
    int above = openat(top, "..", O_RDONLY | O_DIRECTORY);
    lasts(above, 0);
    for (int number = 0;; number++) {
        char line[16];
        switch (number % 8) {
        case 0: case 4: append(log, number); break;
        case 1: case 3: case 6: overwrite(blocks, number); break;
        case 2: case 5: replace(top, number); break;
        case 7: drop(top, number); break;
        }
        snprintf(line, sizeof line, "%d\n", number);
        must(write(1, line, strlen(line)) == (ssize_t)strlen(line), "say");
    }
}
