//! What a running worker calls, and with which arguments. Everything else fails with EPERM.
//!
//! A call that takes a path or an address, makes a process or reaches another one is not here, or only with arguments
//! that do neither. `statx` and `newfstatat` take a path beside their descriptor, which a filter cannot read, so the
//! length of an open file is asked for by `fstat`; `sendmsg` takes an address in the same way. For workers with shares
//! see also `rust/fs/src/sealed.rs`.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use supermachine_fs::{FCHMODAT2, Sealed};
use supermachine_machine::Engine;

use crate::confine::Error;

/// With any arguments: memory, waiting, time, and reading and writing descriptors that are open.
const FREE: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// What the file server calls beside, for who has shares: each takes a directory that is open and one name in it, or a
/// descriptor of an open file; Landlock says where they reach.
const SHARES: &[i64] = &[libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_flock, libc::SYS_getdents64];

/// And for who may change some of them.
const WRITABLE_SHARES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fchmod,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
];

/// The shares of a worker, as far as its calls depend on them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    pub sealed: Sealed,
    /// Whether one of them may be changed.
    pub writable: bool,
}

/// How pthread_create makes a thread (glibc's and musl's; the latter adds a flag that kernels ignore, CLONE_DETACHED).
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;
const DETACHED: u64 = libc::CLONE_DETACHED as u64;

/// include/uapi/asm-generic/ioctls.h; the C libraries differ in its type.
const FIONBIO: u64 = 0x5421;

/// The letter of KVM's ioctls, in bits 15:8, and the numbers in bits 7:0 of those that the engine makes
/// (include/uapi/linux/kvm.h). KVM_RUN comes first, for it is what a guest waits for.
const KVM: u64 = 0xae00;
const KVM_RUN: u64 = 0x80;
const KVM_NUMBERS: &[u64] = &[
    KVM_RUN, 0x61, // KVM_IRQ_LINE
    0x00, // KVM_GET_API_VERSION
    0x01, // KVM_CREATE_VM
    0x02, // KVM_GET_MSR_INDEX_LIST
    0x03, // KVM_CHECK_EXTENSION
    0x04, // KVM_GET_VCPU_MMAP_SIZE
    0x05, // KVM_GET_SUPPORTED_CPUID
    0x41, // KVM_CREATE_VCPU
    0x46, // KVM_SET_USER_MEMORY_REGION
    0x47, // KVM_SET_TSS_ADDR
    0x48, // KVM_SET_IDENTITY_MAP_ADDR
    0x60, // KVM_CREATE_IRQCHIP
    0x62, 0x63, // KVM_GET_IRQCHIP, KVM_SET_IRQCHIP
    0x77, // KVM_CREATE_PIT2
    0x7b, 0x7c, // KVM_SET_CLOCK, KVM_GET_CLOCK
    0x81, 0x82, // KVM_GET_REGS, KVM_SET_REGS
    0x83, 0x84, // KVM_GET_SREGS, KVM_SET_SREGS
    0x88, 0x89, // KVM_GET_MSRS, KVM_SET_MSRS
    0x8c, 0x8d, // KVM_GET_FPU, KVM_SET_FPU
    0x8e, 0x8f, // KVM_GET_LAPIC, KVM_SET_LAPIC
    0x90, 0x91, // KVM_SET_CPUID2, KVM_GET_CPUID2
    0x98, 0x99, // KVM_GET_MP_STATE, KVM_SET_MP_STATE
    0x9b, // KVM_SET_GUEST_DEBUG
    0x9f, 0xa0, // KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS; KVM_GET_PIT2, KVM_SET_PIT2
    0xa1, 0xa2, // KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS; KVM_SET_TSC_KHZ
    0xa3, // KVM_GET_TSC_KHZ, KVM_ENABLE_CAP
    0xa4, 0xa5, 0xcf, // KVM_GET_XSAVE, KVM_SET_XSAVE, KVM_GET_XSAVE2
    0xa6, 0xa7, // KVM_GET_XCRS, KVM_SET_XCRS
    0xab, 0xac, // KVM_GET_ONE_REG, KVM_SET_ONE_REG
    0xad, // KVM_KVMCLOCK_CTRL
    0xae, 0xaf, // KVM_ARM_VCPU_INIT, KVM_ARM_PREFERRED_TARGET
    0xb0, // KVM_GET_REG_LIST
    0xc2, // KVM_ARM_VCPU_FINALIZE
    0xcc, 0xcd, // KVM_GET_SREGS2, KVM_SET_SREGS2
    0xe0, 0xe1, 0xe2,
    0xe3, // KVM_CREATE_DEVICE, KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR
];

/// A condition on one argument; all of a rule's must hold.
#[derive(Clone, Copy)]
enum Argument {
    /// The low 32 bits of argument `.0` are `.1`.
    Is(u8, u64),
    /// The bits `.1` of the low 32 of argument `.0` are `.2`.
    Masked(u8, u64, u64),
    /// All 64 bits of argument `.0`, without the bits `.1`, are `.2`.
    Whole(u8, u64, u64),
    /// Argument `.0` is `.1` or more.
    AtLeast(u8, u64),
}
use Argument::{AtLeast, Is, Masked, Whole};

/// AT_EMPTY_PATH and O_PATH, the same on x86_64 and arm64.
const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;
const STANDS_FOR: u64 = libc::O_PATH as u64;
/// A descriptor, and not AT_FDCWD.
const DESCRIPTOR: Argument = Masked(0, 0x8000_0000, 0);
/// Not an address with a tag, which arm64 ignores in some calls.
const UNTAGGED: Argument = Whole(0, 0x00ff_ffff_ffff_ffff, 0);

/// How memory is changed; with shares, none below what is sealed.
fn memory(shares: Option<Shares>) -> Vec<(i64, Vec<Vec<Argument>>)> {
    let not_executable = Masked(2, libc::PROT_EXEC as u64, 0);
    let Some(Shares { sealed: Sealed { end, .. }, .. }) = shares else {
        return vec![
            (libc::SYS_madvise, vec![]),
            // Memory for the soft engine's code was mapped before, writable in one place and executable in another.
            (libc::SYS_mmap, vec![vec![not_executable]]),
            (libc::SYS_mprotect, vec![vec![not_executable]]),
            (libc::SYS_mremap, vec![]),
            (libc::SYS_munmap, vec![]),
        ];
    };
    let above = [AtLeast(0, end), UNTAGGED];
    let with = |arguments: &[Argument]| above.iter().chain(arguments).copied().collect::<Vec<_>>();
    vec![
        (libc::SYS_madvise, vec![with(&[])]),
        // Only MAP_FIXED takes the place of what is there.
        (
            libc::SYS_mmap,
            vec![vec![not_executable, Masked(3, libc::MAP_FIXED as u64, 0)], with(&[not_executable])],
        ),
        (libc::SYS_mprotect, vec![with(&[not_executable])]),
        (libc::SYS_mremap, vec![with(&[Masked(3, libc::MREMAP_FIXED as u64, 0)])]),
        (libc::SYS_munmap, vec![with(&[])]),
    ]
}

/// What the file server calls with arguments that say how.
fn shared(shares: Option<Shares>) -> Vec<(i64, Vec<Vec<Argument>>)> {
    let Some(Shares { sealed, writable }) = shares else { return vec![] };
    let empty = Whole(1, 0, sealed.empty);
    let mut calls = vec![
        // Landlock is asked when a file is opened, but not when a descriptor is to stand for one.
        (libc::SYS_openat, vec![vec![Masked(2, STANDS_FOR, 0)]]),
        (libc::SYS_openat2, vec![vec![DESCRIPTOR, Whole(2, 0, sealed.how), Whole(3, 0, sealed.how_bytes)]]),
        (libc::SYS_readlinkat, vec![vec![DESCRIPTOR, empty]]),
        (libc::SYS_statx, vec![vec![DESCRIPTOR, empty]]),
    ];
    if writable {
        calls.extend([
            (FCHMODAT2, vec![vec![DESCRIPTOR, empty, Is(3, EMPTY_PATH)]]),
            (libc::SYS_fchownat, vec![vec![DESCRIPTOR, empty, Is(4, EMPTY_PATH)]]),
            (libc::SYS_utimensat, vec![vec![DESCRIPTOR, empty, Is(3, EMPTY_PATH)]]),
        ]);
    }
    calls
}

/// Calls that are allowed when one of their rules holds, or always when they have none.
fn conditional(engine: Engine, shares: Option<Shares>) -> Vec<(i64, Vec<Vec<Argument>>)> {
    let mut fcntl = vec![libc::F_GETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
    if shares.is_some() {
        // Locks, of which none is waited for.
        fcntl.extend([libc::F_OFD_GETLK, libc::F_OFD_SETLK]);
    }
    let socket = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
    let mut ioctls = vec![vec![Is(1, FIONBIO)]];
    if engine == Engine::Kvm {
        // In front, as KVM_RUN is the one that is made all the time.
        ioctls.splice(0..0, KVM_NUMBERS.iter().map(|number| vec![Masked(1, 0xffff, KVM | number)]));
    }
    let mut calls = memory(shares);
    calls.extend(shared(shares));
    calls.extend([
        (libc::SYS_clone, vec![vec![Whole(0, DETACHED, THREAD)]]),
        (libc::SYS_fcntl, fcntl.iter().map(|command| vec![Is(1, command.cast_unsigned().into())]).collect()),
        (libc::SYS_ioctl, ioctls),
        (libc::SYS_prctl, vec![vec![Is(0, libc::PR_SET_NAME as u64)]]),
        (libc::SYS_sendto, vec![vec![Whole(4, 0, 0)]]),
        // How a flow of the guest's network is reset.
        (libc::SYS_setsockopt, vec![vec![Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_LINGER as u64)]]),
        (
            libc::SYS_socketpair,
            vec![vec![Is(0, libc::AF_UNIX as u64), Masked(1, !socket, libc::SOCK_STREAM as u64)]],
        ),
        // A vCPU is brought out of the guest by a signal to its thread.
        (libc::SYS_tgkill, vec![vec![Is(0, std::process::id().into())]]),
    ]);
    calls
}

/// Filters the calls of all threads of this process from now on.
pub(super) fn apply(engine: Engine, shares: Option<Shares>) -> Result<(), Error> {
    let failed = |e: &dyn std::error::Error| Error::Seccomp(e.to_string());
    let program = program(engine, shares).map_err(|e| failed(&e))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|e| failed(&e))
}

pub(super) fn program(
    engine: Engine,
    shares: Option<Shares>,
) -> Result<BpfProgram, seccompiler::BackendError> {
    filter(rules(engine, shares)?)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(engine: Engine, shares: Option<Shares>) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = FREE.iter().map(|number| (*number, vec![])).collect();
    if let Some(shares) = shares {
        rules.extend(SHARES.iter().map(|number| (*number, vec![])));
        if shares.writable {
            rules.extend(WRITABLE_SHARES.iter().map(|number| (*number, vec![])));
        }
    }
    for (number, alternatives) in conditional(engine, shares) {
        rules.insert(number, alternatives.iter().map(|arguments| rule(arguments)).collect::<Result<_, _>>()?);
    }
    Ok(rules)
}

fn rule(arguments: &[Argument]) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(arguments.iter().map(condition).collect::<Result<_, _>>()?)
}

/// Lets the calls of `rules` through.
fn filter(rules: Rules) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    // A call that is not listed fails as if it were not permitted, so that a library that merely asks goes on.
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter: BpfProgram = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()?;
    Ok(without_clone3().into_iter().chain(filter).collect())
}

/// How a template copies itself: its copies are its parent's children, as it is.
pub(super) const COPY: u64 = (libc::CLONE_PARENT | libc::SIGCHLD) as u64;

/// Calls of a template beside those of a worker of the soft engine without shares; its copies make them too, until
/// [`clone_program`] takes them away.
const TEMPLATE: &[(i64, &[Argument])] = &[
    (libc::SYS_clone, &[Whole(0, 0, COPY)]),
    // For the copy's own code memory.
    (libc::SYS_memfd_create, &[]),
    (libc::SYS_mmap, &[]),
    (libc::SYS_seccomp, &[Is(0, libc::SECCOMP_SET_MODE_FILTER as u64)]),
    // A copy has another number.
    (libc::SYS_tgkill, &[]),
    // Of the file server.
    (libc::SYS_umask, &[]),
];

/// Filters the calls of this process and its copies.
pub(super) fn apply_to_template() -> Result<(), Error> {
    let failed = |e: &dyn std::error::Error| Error::Seccomp(e.to_string());
    let program = template_program().map_err(|e| failed(&e))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|e| failed(&e))
}

pub(super) fn template_program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = rules(Engine::Soft, None)?;
    for (number, arguments) in TEMPLATE {
        let alternatives = rules.entry(*number).or_default();
        match arguments {
            [] => alternatives.clear(),
            arguments => alternatives.push(rule(arguments)?),
        }
    }
    filter(rules)
}

/// Filters the calls of this process, a template's copy, beside what filters them already: both must let one through.
pub(super) fn apply_to_clone() -> Result<(), Error> {
    let program = clone_program(std::process::id()).map_err(|e| Error::Seccomp(e.to_string()))?;
    let length = u16::try_from(program.len()).map_err(|e| Error::Seccomp(e.to_string()))?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program is as long as is said and outlives the call; instructions have the layout of the kernel's.
    let refused =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    match refused {
        0 => Ok(()),
        _ => Err(Error::Seccomp(std::io::Error::last_os_error().to_string())),
    }
}

/// Refuses what a template may and a worker may not: the two let through together what a worker's filter does.
fn clone_program(process: u32) -> Result<BpfProgram, seccompiler::BackendError> {
    let other = |index, length, value| SeccompCondition::new(index, length, SeccompCmpOp::Ne, value);
    let none_of_a_thread = vec![
        other(0, SeccompCmpArgLen::Qword, THREAD)?,
        other(0, SeccompCmpArgLen::Qword, THREAD | DETACHED)?,
    ];
    let executable = libc::PROT_EXEC as u64;
    let of_another = other(0, SeccompCmpArgLen::Dword, process.into())?;
    let rules: Rules = [
        (libc::SYS_clone, vec![SeccompRule::new(none_of_a_thread)?]),
        (libc::SYS_memfd_create, vec![]),
        (libc::SYS_mmap, vec![rule(&[Masked(2, executable, executable)])?]),
        (libc::SYS_seccomp, vec![]),
        (libc::SYS_tgkill, vec![SeccompRule::new(vec![of_another])?]),
        (libc::SYS_umask, vec![]),
    ]
    .into();
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
}

/// A C library takes `clone` when a kernel does not have `clone3`, whose flags are in memory; so this one has it not.
/// The number is the same on every architecture, so that it is looked at before the architecture is.
#[expect(clippy::cast_possible_truncation, reason = "constants of the right width but not of its type")]
fn without_clone3() -> [sock_filter; 3] {
    let instruction = |code: u32, k: u32, jf: u8| sock_filter { code: code as u16, jt: 0, jf, k };
    // The first field of seccomp_data is the number of the call (include/uapi/linux/seccomp.h).
    [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_clone3 as u32, 1),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0),
    ]
}

fn condition(argument: &Argument) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (index, length, operator, value) = match *argument {
        Is(index, value) => (index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value),
        Masked(index, mask, value) => {
            (index, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask & 0xffff_ffff), value)
        }
        Whole(index, ignored, value) => {
            (index, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(!ignored), value)
        }
        AtLeast(index, value) => (index, SeccompCmpArgLen::Qword, SeccompCmpOp::Ge, value),
    };
    SeccompCondition::new(index, length, operator, value)
}
