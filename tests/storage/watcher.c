/* Says what inotify tells of directories and files: "PATH KIND[,KIND…] NAME", one event a line. */

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

static const struct {
    unsigned mask;
    const char *name;
} kinds[] = {
    {IN_CREATE, "CREATE"},         {IN_DELETE, "DELETE"},       {IN_MODIFY, "MODIFY"},
    {IN_CLOSE_WRITE, "CLOSE"},     {IN_ATTRIB, "ATTRIB"},       {IN_MOVED_FROM, "FROM"},
    {IN_MOVED_TO, "TO"},           {IN_DELETE_SELF, "GONE"},    {IN_MOVE_SELF, "MOVED"},
    {IN_Q_OVERFLOW, "OVERFLOW"},   {IN_ISDIR, "DIR"},
};
enum { KINDS = sizeof kinds / sizeof *kinds, MOST = 16 };

int main(int argc, char **argv)
{
    static char buffer[64 * (sizeof(struct inotify_event) + NAME_MAX + 1)]
        __attribute__((aligned(__alignof__(struct inotify_event))));
    int watches[MOST];
    unsigned mask = 0;
    int fd = inotify_init1(IN_CLOEXEC);
    for (int i = 0; i < KINDS - 2; i++)
        mask |= kinds[i].mask;
    for (int i = 1; i < argc && i < MOST; i++) {
        watches[i] = inotify_add_watch(fd, argv[i], mask);
        if (watches[i] < 0)
            return perror(argv[i]), 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        ssize_t length = read(fd, buffer, sizeof buffer);
        if (length <= 0)
            return perror("read"), 1;
        for (char *at = buffer; at < buffer + length;) {
            struct inotify_event *event = (void *)at;
            const char *path = "?", *separator = " ";
            for (int i = 1; i < argc && i < MOST; i++)
                if (watches[i] == event->wd)
                    path = argv[i];
            if (!(event->mask & IN_IGNORED)) {
                printf("%s", path);
                for (int i = 0; i < KINDS; i++)
                    if (event->mask & kinds[i].mask) {
                        printf("%s%s", separator, kinds[i].name);
                        separator = ",";
                    }
                printf(" %s\n", event->len ? event->name : "-");
            }
            at += sizeof *event + event->len;
        }
        fflush(stdout);
    }
}
