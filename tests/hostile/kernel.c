// A guest's kernel that does the worst to its devices: each register, and queues that lie, in each state of a driver.
// Built for no system (see test_kernel.py): it is the Image, or the vmlinux, that a machine boots. It ends by itself,
// through the firmware, so that a worker that is there at the end has borne all of it.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

// What the test puts in: the magic is what it looks for.
struct settings {
    u64 magic;
    u64 seed;
    u32 rounds;
    // 0: ends by itself. 1: goes on for ever, with one notification after another. 2: never leaves the CPU.
    u32 then;
};
__attribute__((section(".data"), used)) volatile struct settings settings = {0x746c6961766e7573, 1, 1, 0};

#ifdef __aarch64__
#define VIRTIO 0x0a000000ul
#define STRIDE 0x200ul
#define WINDOWS 32
#define RAM 0x40000000ul
// Distributor, redistributors, UART, VM generation id: what else is there to be written to.
static const u64 PLACES[][2] = {{0x08000000, 0x10000}, {0x080a0000, 0x20000}, {0x09000000, 0x1000}, {0x09010000, 0x1000}};

__asm__(".section .head,\"ax\"\n"
        "b start\n"
        ".word 0\n"
        ".quad 0\n"            // text_offset
        ".quad 0x200000\n"     // image_size
        ".quad 0xa\n"          // flags
        ".quad 0, 0, 0\n"
        ".word 0x644d5241\n"   // ARM\x64
        ".word 0\n"
        "start:\n"
        "ldr x1, =0x401f0000\n"
        "mov sp, x1\n"
        "ldr x1, =vectors\n"
        "msr vbar_el1, x1\n"
        "isb\n"
        "bl work\n"
        "b .\n"
        ".ltorg\n"
        // Whatever is not allowed is left out.
        ".balign 2048\n"
        "vectors:\n"
        ".rept 16\n"
        ".balign 128\n"
        "mrs x18, elr_el1\n"
        "add x18, x18, #4\n"
        "msr elr_el1, x18\n"
        "eret\n"
        ".endr\n"
        ".balign 2048\n");

static u64 firmware(u64 function, u64 a, u64 b, u64 c) {
    register u64 x0 __asm__("x0") = function, x1 __asm__("x1") = a, x2 __asm__("x2") = b, x3 __asm__("x3") = c;
    __asm__ volatile("hvc #0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3) : : "memory");
    return x0;
}

static void end(void) {
    firmware(0x84000008, 0, 0, 0); // SYSTEM_OFF
}

static void others(u64 value) {
    // The firmware's other functions, but for those that end or stop the machine.
    static const u32 functions[] = {0x84000000, 0x84000001, 0x84000003, 0xc4000003, 0x84000004, 0xc4000004, 0x84000005,
                                    0x84000006, 0x84000007, 0x8400000a, 0x8400000b, 0x8400000f, 0x80000000, 0x80000001,
                                    0xc400000e, 0xffffffff, 0x86000000, 0xc6000001};
    firmware(functions[value % (sizeof functions / sizeof *functions)], value >> 8, value >> 4, value);
}
#else
#define VIRTIO 0xd0000000ul
#define STRIDE 0x1000ul
#define WINDOWS 19
#define RAM 0x100000ul
static const u64 PLACES[][2] = {{0xfec00000, 0x100}, {0xd0000000, 0x1000}};

__asm__(".section .head,\"ax\"\n"
        ".globl start\n"
        "start:\n"
        "mov $0x2f0000, %rsp\n"
        "call work\n"
        "1: hlt\n"
        "jmp 1b\n");

static void out(u16 port, u8 value) {
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void end(void) {
    out(0x64, 0xfe); // the keyboard controller's reset
}

static void others(u64 value) {
    u16 port = value >> 8;
    u8 got;
    // Those that end the machine are left out.
    if (port == 0x64 || port == 0x92 || port == 0xcf9)
        return;
    __asm__ volatile("inb %1, %0" : "=a"(got) : "Nd"(port));
    out(port, (u8)value);
}
#endif

// The device's own, above this program and below 64 MiB.
#define RINGS (RAM + 0x400000)
#define BUFFERS (RAM + 0x800000)
#define LAST (RAM + 0x3000000)

// virtio 1.2, 4.2.2.
enum { MAGIC = 0, ID = 8, FEATURES = 0x10, FEATURES_SELECT = 0x14, DRIVER = 0x20, DRIVER_SELECT = 0x24, QUEUE = 0x30,
       QUEUE_MAX = 0x34, QUEUE_SIZE = 0x38, READY = 0x44, NOTIFY = 0x50, ACK = 0x64, STATUS = 0x70, DESC = 0x80,
       AVAIL = 0x90, USED = 0xa0, CONFIG = 0x100 };

struct descriptor { u64 address; u32 length; u16 flags, next; };

static u64 state;
static u64 chance(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static u32 get(u64 at) { return *(volatile u32 *)at; }
static void put(u64 at, u32 value) { *(volatile u32 *)at = value; }
static void put64(u64 at, u64 value) { put(at, (u32)value), put(at + 4, (u32)(value >> 32)); }

static void notify(u64 device, u32 queue) { put(device + NOTIFY, queue); }

// Where a liar's descriptors lead.
static u64 somewhere(void) {
    u64 places[] = {BUFFERS + (chance() & 0xffff), RINGS + (chance() & 0xffff), RAM, LAST, LAST - 8, LAST + (1ul << 24), 0,
                    VIRTIO, PLACES[0][0], ~0ul, ~0ul - (chance() & 0xffff), 1ul << 63, chance(), 1ul << 40};
    return places[chance() % (sizeof places / sizeof *places)];
}

static u32 length(void) {
    u32 lengths[] = {0, 1, 8, 44, 512, 4096, 65536, 1u << 20, 1u << 31, 0xffffffff, (u32)chance(), (u32)chance() & 0xfff};
    return lengths[chance() % (sizeof lengths / sizeof *lengths)];
}

static void place_queue(u64 device, u32 queue, u32 size, u64 rings) {
    put(device + QUEUE, queue);
    put(device + QUEUE_SIZE, size);
    put64(device + DESC, rings);
    put64(device + AVAIL, rings + 0x4000);
    put64(device + USED, rings + 0x6000);
    put(device + READY, 1);
}

// Chains that go in circles, leave the table, lead nowhere, are far too long, or are not there.
static void lie(u64 device, u32 queue) {
    u64 rings = RINGS + queue * 0x8000ul;
    volatile struct descriptor *table = (void *)rings;
    volatile u16 *available = (void *)(rings + 0x4000);
    u32 many = chance() % 5 ? 8 : 256;
    for (u32 n = 0; n < many; n++) {
        table[n].address = somewhere();
        table[n].length = length();
        table[n].flags = (u16)(chance() & (chance() % 4 ? 3 : 0xffff));
        table[n].next = (u16)(chance() % 3 ? n + 1 : chance());
        available[2 + n] = (u16)(chance() % 3 ? chance() % 8 : chance());
    }
    for (u32 n = 0; n < 64; n++)
        *(volatile u64 *)(BUFFERS + (chance() & 0xffff & ~7ul)) = chance() % 2 ? chance() : chance() & 0xff;
    available[0] = (u16)(chance() & 1);
    available[1] = (u16)(available[1] + (chance() % 4 ? 1 : chance()));
    for (u32 n = chance() % 16; n; n--)
        notify(device, queue);
}

// How far a driver has come with the device.
enum { NEW, KNOWN, DRIVEN, AGREED, PLACED, RUNNING, FAILED, STATES };

static void bring(u64 device, int where) {
    static const u32 status[STATES] = {0, 1, 3, 11, 11, 15, 0x80 | 15};
    put(device + STATUS, 0);
    if (where == NEW)
        return;
    put(device + STATUS, status[where < DRIVEN ? where : DRIVEN]);
    if (where >= AGREED) {
        for (u32 word = 0; word < 2; word++) {
            put(device + FEATURES_SELECT, word);
            u32 offered = get(device + FEATURES);
            put(device + DRIVER_SELECT, word);
            put(device + DRIVER, offered);
        }
        put(device + STATUS, 11);
    }
    if (where >= PLACED)
        for (u32 queue = 0; queue < 4; queue++) {
            put(device + QUEUE, queue);
            u32 most = get(device + QUEUE_MAX);
            if (most)
                place_queue(device, queue, chance() % 4 ? most : (u32)chance(), chance() % 4 ? RINGS + queue * 0x8000ul : somewhere());
        }
    put(device + STATUS, status[where]);
}

// Each register read and written at each width, wherever the driver is.
static void registers(u64 device) {
    for (u64 at = 0; at < STRIDE && at < 0x200; at += 1 + chance() % 8) {
        (void)*(volatile u8 *)(device + at);
        (void)*(volatile u16 *)(device + (at & ~1ul));
        (void)*(volatile u32 *)(device + (at & ~3ul));
        (void)*(volatile u64 *)(device + (at & ~7ul));
        u64 values[] = {0, 1, 0xffffffff, 0x80000000, chance()};
        u64 value = values[chance() % 5];
        switch (chance() % 4) {
        case 0: *(volatile u8 *)(device + at) = (u8)value; break;
        case 1: *(volatile u16 *)(device + (at & ~1ul)) = (u16)value; break;
        case 2: *(volatile u32 *)(device + (at & ~3ul)) = (u32)value; break;
        default: *(volatile u64 *)(device + (at & ~7ul)) = value;
        }
    }
}

static void elsewhere(void) {
    const u64 *place = PLACES[chance() % (sizeof PLACES / sizeof *PLACES)];
    for (int n = 0; n < 64; n++) {
        u64 at = place[0] + chance() % place[1];
        if (chance() % 2)
            *(volatile u32 *)(at & ~3ul) = (u32)chance();
        else
            (void)*(volatile u64 *)(at & ~7ul);
    }
    others(chance());
}

__attribute__((used)) void work(void) {
    state = settings.seed;
    u64 devices[WINDOWS];
    u32 count = 0;
    for (u64 n = 0; n < WINDOWS; n++) {
        u64 at = VIRTIO + n * STRIDE;
#ifdef __aarch64__
        if (get(at) == 0x74726976 && get(at + ID))
#else
        if (n < 11 && get(at) == 0x74726976 && get(at + ID))
#endif
            devices[count++] = at;
    }
    for (u32 round = 0; round < settings.rounds; round++) {
        for (u32 n = 0; n < count; n++)
            for (int where = NEW; where < STATES; where++) {
                bring(devices[n], where);
                for (u32 queue = 0; queue < 4; queue++)
                    lie(devices[n], queue);
                registers(devices[n]);
                for (u32 queue = 0; queue < 70000; queue += 1 + chance() % 20000)
                    notify(devices[n], queue);
            }
        elsewhere();
    }
    for (u32 n = 0; n < count; n++)
        bring(devices[n], RUNNING);
    while (settings.then == 1)
        for (u32 n = 0; n < count; n++)
            lie(devices[n], (u32)chance() % 4);
    while (settings.then == 2)
        ;
    // What it has found is said by how it ends: nothing to do the worst to is no test.
    if (count >= 8)
        end();
    for (;;)
        ;
}
