// Runs a few instructions under KVM and prints what they gave: whether /dev/kvm of an emulated host is a real one.
// The guest adds two registers, stores the sum in its memory, and reports it by a device access that ends KVM_RUN.

#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define RAM 0x8000
#define SIZE 0x1000
#define DATA 0x800
#define DEVICE 0xc000

static int must(const char *what, int result) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

#if defined(__x86_64__)
// add %ebx,%eax; mov %eax,0x800(%di); mov %eax,(%si) in real mode.
static const uint8_t code[] = {0x66, 0x01, 0xd8, 0x66, 0x89, 0x85, 0x00, 0x08, 0x66, 0x89, 0x04};

static void set_up(int vm, int vcpu) {
    (void)vm;
    struct kvm_sregs sregs;
    must("KVM_GET_SREGS", ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = 0, sregs.cs.selector = 0;
    must("KVM_SET_SREGS", ioctl(vcpu, KVM_SET_SREGS, &sregs));
    struct kvm_regs regs = {
        .rip = RAM, .rax = 1234567, .rbx = 7654321, .rdi = RAM, .rsi = DEVICE, .rflags = 2};
    must("KVM_SET_REGS", ioctl(vcpu, KVM_SET_REGS, &regs));
}
#elif defined(__aarch64__)
// add w0,w0,w1; str w0,[x2,#0x800]; str w0,[x3]
static const uint32_t code[] = {0x0b010000, 0xb9080040, 0xb9000060};

static void set_register(int vcpu, unsigned long index, uint64_t value) {
    struct kvm_one_reg reg = {
        .id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | index, .addr = (uintptr_t)&value};
    must("KVM_SET_ONE_REG", ioctl(vcpu, KVM_SET_ONE_REG, &reg));
}

static void set_up(int vm, int vcpu) {
    struct kvm_vcpu_init init;
    must("KVM_ARM_PREFERRED_TARGET", ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init));
    must("KVM_ARM_VCPU_INIT", ioctl(vcpu, KVM_ARM_VCPU_INIT, &init));
    const uint64_t x[] = {1234567, 7654321, RAM, DEVICE};
    for (unsigned n = 0; n < 4; n++)
        set_register(vcpu, KVM_REG_ARM_CORE_REG(regs.regs[n]), x[n]);
    set_register(vcpu, KVM_REG_ARM_CORE_REG(regs.pc), RAM);
}
#endif

int main(void) {
    int kvm = must("/dev/kvm", open("/dev/kvm", O_RDWR | O_CLOEXEC));
    int vm = must("KVM_CREATE_VM", ioctl(kvm, KVM_CREATE_VM, 0));
    uint8_t *ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ram == MAP_FAILED)
        must("mmap", -1);
    memcpy(ram, code, sizeof code);
    struct kvm_userspace_memory_region region = {
        .guest_phys_addr = RAM, .memory_size = SIZE, .userspace_addr = (uintptr_t)ram};
    must("KVM_SET_USER_MEMORY_REGION", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    int vcpu = must("KVM_CREATE_VCPU", ioctl(vm, KVM_CREATE_VCPU, 0));
    int size = must("KVM_GET_VCPU_MMAP_SIZE", ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        must("mmap of the vCPU", -1);
    set_up(vm, vcpu);
    must("KVM_RUN", ioctl(vcpu, KVM_RUN, 0));
    uint32_t stored, reported;
    memcpy(&stored, ram + DATA, sizeof stored);
    memcpy(&reported, run->mmio.data, sizeof reported);
    printf("exit %u write %u at %#llx: %u, memory %u\n", run->exit_reason, run->mmio.is_write,
           (unsigned long long)run->mmio.phys_addr, reported, stored);
    return 0;
}
