// A guest's first program that is not our agent and does the worst in one state of the protocol, as rust/proto/src/agent.rs
// has it (frames of a length and a body, in postcard's encoding). Which, the test writes into it.
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
// <linux/vm_sockets.h> needs the ones above.
#include <linux/vm_sockets.h>

static volatile struct {
    char magic[8];
    unsigned what, version;
} settings = {"sunvail", 0, 0};

enum { HELLO, READY, FAILED, RENEWED, FROZEN, THAWED, STOPPING, CLOCK_SET };

// What it does, in the order of `WORST` in test_agent.py.
enum {
    SILENT, HELLO_FOR_EVER, READY_FIRST, READY_FOR_EVER, NEVER_READS, LONG_FRAME, DRIP, COMES_AND_GOES, CROWD, OTHER_VERSION,
    LONG_FAILURE, NOBODY_LISTENS, NOTHING_ANSWERED, NOISE, STARTED_FOR_EVER, OUTPUT_FOR_EVER, ENDS_TWICE, UNASKED, DEAF_TO_ALL,
};

static int boot = -1;

static int dial(unsigned port) {
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&host, sizeof host)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void say(int fd, const void *bytes, size_t length) {
    for (size_t at = 0; at < length;) {
        ssize_t sent = send(fd, (const char *)bytes + at, length - at, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        at += sent;
    }
}

static unsigned char frame[300000];

static void say_frame(int fd, const void *body, unsigned length) {
    memcpy(frame, &length, 4);
    memmove(frame + 4, body, length);
    say(fd, frame, length + 4);
}

static size_t number(unsigned char *at, unsigned long value) {
    size_t length = 0;
    for (; value > 127; value >>= 7)
        at[length++] = (unsigned char)(value | 128);
    at[length++] = (unsigned char)value;
    return length;
}

static unsigned char body[280000];

// An event with this many bytes of text, all of them what a terminal takes for commands.
static void text(int fd, int event, unsigned version, unsigned long bytes) {
    size_t length = number(body, event);
    if (event == HELLO)
        length += number(body + length, version);
    length += number(body + length, bytes);
    for (unsigned long n = 0; n < bytes; n++)
        body[length++] = "\x1b]0;title\x07\x1b[2J"[n % 14];
    say_frame(fd, body, length);
}

static void event(int kind) {
    unsigned char one = kind;
    say_frame(boot, &one, 1);
}

static void swallow(int fd) {
    char bytes[4096];
    struct pollfd look = {.fd = fd, .events = POLLIN};
    while (poll(&look, 1, 0) > 0 && recv(fd, bytes, sizeof bytes, 0) > 0)
        ;
}

static void answer(int fd) {
    static const unsigned char started[] = {0, 7}, ended[] = {4, 0, 0}, both[] = {0, 7, 4, 0, 0};
    unsigned char output[60000] = {1};
    switch (settings.what) {
    case NOTHING_ANSWERED:
    case DEAF_TO_ALL:
        return; // kept, and never read
    case NOISE:
        for (int n = 0; n < 200; n++) {
            body[n] = (unsigned char)(n * 41 + 7);
            say_frame(fd, body, n + 1);
        }
        break;
    case STARTED_FOR_EVER:
        for (int n = 0; n < 200000; n++)
            say_frame(fd, started, sizeof started);
        break;
    case OUTPUT_FOR_EVER:
        for (int n = 0; n < 2000; n++) {
            size_t length = 1 + number(output + 1, 50000);
            say_frame(fd, output, length + 50000);
        }
        break;
    case ENDS_TWICE:
        say_frame(fd, both, sizeof both);
        for (int n = 0; n < 1000; n++)
            say_frame(fd, ended, sizeof ended);
    }
    close(fd);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    unsigned what = settings.what;
    if (what == CROWD)
        for (int n = 0; n < 3000; n++)
            dial(1024);
    while (what == COMES_AND_GOES)
        close(dial(1024));
    while ((boot = dial(1024)) < 0)
        usleep(1000);
    static const unsigned long endless = ~0ul;
    switch (what) {
    case READY_FIRST:
        event(READY);
        break;
    case HELLO_FOR_EVER:
        for (;;)
            text(boot, HELLO, settings.version, 20);
    case LONG_FRAME:
        say(boot, &endless, 4);
        for (;;)
            say(boot, frame, sizeof frame);
    case DRIP:
        say(boot, "\x09\x01\0\0", 4);
        for (;;) {
            say(boot, "\x01", 1);
            usleep(50000);
        }
    case OTHER_VERSION:
        text(boot, HELLO, settings.version + 1, 200000);
        break;
    case LONG_FAILURE:
        text(boot, FAILED, 0, 200000);
        break;
    case SILENT:
        break;
    default:
        text(boot, HELLO, settings.version, 20);
    }
    if (what < NOBODY_LISTENS && what != READY_FOR_EVER && what != NEVER_READS)
        for (;;)
            pause();
    if (what == NEVER_READS)
        for (;;) {
            text(boot, FAILED + 1, 0, 200000);
            usleep(1000);
        }
    struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 1025};
    int server = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (what != NOBODY_LISTENS && (bind(server, (struct sockaddr *)&here, sizeof here) || listen(server, 128)))
        return 1;
    event(READY);
    while (what == READY_FOR_EVER)
        event(READY);
    for (;;) {
        struct pollfd look = {.fd = server, .events = POLLIN};
        if (poll(&look, 1, 20) > 0)
            answer(accept(server, 0, 0));
        if (what == UNASKED)
            for (int kind = RENEWED; kind <= CLOCK_SET; kind++)
                event(kind);
        if (what != DEAF_TO_ALL)
            swallow(boot); // and what it says is not done
    }
}
