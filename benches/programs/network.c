/* The guest's side of network.py and of tests: does as a connection to the host says, a command a line, and answers "done".
 *
 *   send PORT BYTES FLOWS     so many bytes over so many connections, which the other side ends
 *   receive PORT BYTES FLOWS  what the other side sends over them, until it ends them
 *   echo PORT COUNT           one byte there and back, one after the other
 *   connect PORT COUNT        connections that the other side ends at once, one after the other
 *   hold PORT COUNT           more connections that are kept until another command
 *   ask PORT COUNT HEX        a datagram and its answer, one after the other
 *   relay FROM TO             what comes from one port goes to the other
 *   datagram PORT SIZE        a datagram of that size, which comes back as it was
 *   urgent PORT 0             bytes with an urgent one among them, which come back as they were
 *
 * As the first process of a guest it also gives eth0 the address 10.0.2.15. */
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 64, MANY = 20000, BUFFER = 1 << 18 };

static const char *host;
static int held[MANY], count_held;
static char buffer[BUFFER];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_in place(const char *address, int port)
{
    struct sockaddr_in out = { .sin_family = AF_INET, .sin_port = htons(port) };
    inet_pton(AF_INET, address, &out.sin_addr);
    return out;
}

static int open_flow(int kind, int port)
{
    struct sockaddr_in to = place(host, port);
    int fd = socket(AF_INET, kind, 0), on = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("connect");
    if (kind == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void move(int port, long bytes, int flows, int out)
{
    struct pollfd polls[MOST];
    long left[MOST];
    int open = flows;
    if (flows > MOST)
        exit(2);
    for (int n = 0; n < flows; n++) {
        polls[n] = (struct pollfd){ open_flow(SOCK_STREAM, port), out ? POLLOUT : POLLIN, 0 };
        left[n] = bytes / flows;
    }
    while (open > 0) {
        if (flows > 1 && poll(polls, flows, -1) < 0)
            fail("poll");
        for (int n = 0; n < flows; n++) {
            struct pollfd *flow = &polls[n];
            ssize_t moved;
            if (flow->fd < 0 || (flows > 1 && !flow->revents))
                continue;
            int sending = flow->events == POLLOUT;
            int flags = flows > 1 ? MSG_DONTWAIT : 0;
            if (sending)
                moved = send(flow->fd, buffer, left[n] < BUFFER ? left[n] : BUFFER, flags);
            else
                moved = recv(flow->fd, buffer, BUFFER, flags);
            if (moved < 0 && errno == EAGAIN)
                continue;
            if (moved < 0)
                fail("moving");
            if (sending) {
                left[n] -= moved;
                if (left[n] == 0) {
                    shutdown(flow->fd, SHUT_WR);
                    flow->events = POLLIN;
                }
            } else if (moved == 0) {
                close(flow->fd);
                flow->fd = -1;
                open--;
            }
        }
    }
}

static void echo(int fd, long count, const char *bytes, size_t length)
{
    while (count-- > 0)
        if (send(fd, bytes, length, 0) < 0 || recv(fd, buffer, BUFFER, 0) <= 0)
            fail("echo");
    close(fd);
}

static void relay(int from, int to)
{
    ssize_t got;
    while ((got = recv(from, buffer, BUFFER, 0)) > 0)
        for (ssize_t sent = 0, n; sent < got; sent += n)
            if ((n = send(to, buffer + sent, got - sent, 0)) < 0)
                fail("relay");
    if (got < 0)
        fail("relay");
    close(to);
    close(from);
}

static void datagram(int fd, size_t length)
{
    static char sent[1 << 16];
    for (size_t n = 0; n < length; n++)
        sent[n] = n * 7 + n / 251;
    if (send(fd, sent, length, 0) < 0)
        fail("datagram");
    if (recv(fd, buffer, BUFFER, 0) != (ssize_t)length || memcmp(sent, buffer, length))
        exit(3);
    close(fd);
}

static void urgent(int fd)
{
    size_t got = 0;
    ssize_t n;
    if (send(fd, "abc", 3, 0) != 3 || send(fd, "!", 1, MSG_OOB) != 1 || send(fd, "def", 3, 0) != 3)
        fail("urgent");
    shutdown(fd, SHUT_WR);
    while ((n = recv(fd, buffer + got, 100, 0)) > 0)
        got += n;
    if (got != 7 || memcmp(buffer, "abc!def", 7))
        exit(3);
    close(fd);
}

static void command(char *line)
{
    char what[16], hex[512] = "";
    int port = 0;
    long first = 0;
    if (sscanf(line, "%15s %d %ld %511s", what, &port, &first, hex) < 3)
        exit(2);
    while (strcmp(what, "hold") && count_held > 0)
        close(held[--count_held]);
    if (!strcmp(what, "send") || !strcmp(what, "receive")) {
        move(port, first, atoi(hex), what[0] == 's');
    } else if (!strcmp(what, "echo")) {
        echo(open_flow(SOCK_STREAM, port), first, "x", 1);
    } else if (!strcmp(what, "connect")) {
        while (first-- > 0) {
            int fd = open_flow(SOCK_STREAM, port);
            if (recv(fd, buffer, 1, 0) != 0)
                fail("end");
            close(fd);
        }
    } else if (!strcmp(what, "hold")) {
        while (first-- > 0 && count_held < MANY)
            held[count_held++] = open_flow(SOCK_STREAM, port);
    } else if (!strcmp(what, "relay")) {
        relay(open_flow(SOCK_STREAM, port), open_flow(SOCK_STREAM, first));
    } else if (!strcmp(what, "datagram")) {
        datagram(open_flow(SOCK_DGRAM, port), first);
    } else if (!strcmp(what, "urgent")) {
        urgent(open_flow(SOCK_STREAM, port));
    } else if (!strcmp(what, "ask")) {
        char bytes[256];
        size_t length = strlen(hex) / 2;
        for (size_t n = 0; n < length; n++) {
            unsigned byte;
            sscanf(hex + 2 * n, "%2x", &byte);
            bytes[n] = byte;
        }
        echo(open_flow(SOCK_DGRAM, port), first, bytes, length);
    }
}

static void configure(void)
{
    struct ifreq request = { .ifr_name = "eth0" };
    struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
    struct sockaddr_in own = place("10.0.2.15", 0), gateway = place("10.0.2.2", 0), any = place("0.0.0.0", 0);
    struct sockaddr_in mask = place("255.255.255.0", 0);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    memcpy(&request.ifr_addr, &own, sizeof own);
    if (ioctl(fd, SIOCSIFADDR, &request) < 0)
        fail("address");
    memcpy(&request.ifr_addr, &mask, sizeof mask);
    ioctl(fd, SIOCSIFNETMASK, &request);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    ioctl(fd, SIOCSIFFLAGS, &request);
    memcpy(&route.rt_gateway, &gateway, sizeof gateway);
    memcpy(&route.rt_dst, &any, sizeof any);
    memcpy(&route.rt_genmask, &any, sizeof any);
    if (ioctl(fd, SIOCADDRT, &route) < 0)
        fail("route");
    close(fd);
    /* The link comes up a moment later. */
    sleep(1);
}

int main(int argc, char **argv)
{
    struct rlimit many = { MANY + 100, MANY + 100 };
    char line[1024];
    setrlimit(RLIMIT_NOFILE, &many);
    host = argc > 2 ? argv[1] : "10.0.2.2";
    /* The kernel hands what it does not know on its command line to the first process in its environment. */
    int port = argc > 2 ? atoi(argv[2]) : atoi(getenv("control") ? getenv("control") : "0");
    if (getpid() == 1)
        configure();
    int control = open_flow(SOCK_STREAM, port);
    FILE *in = fdopen(control, "r");
    while (fgets(line, sizeof line, in)) {
        command(line);
        if (send(control, "done\n", 5, 0) != 5)
            return 1;
    }
    return 0;
}
