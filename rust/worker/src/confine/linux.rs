//! Landlock and seccomp. A kernel without Landlock leaves that half out.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};

use super::Error;
use supermachine_machine::Engine;

/// Confines this process and all its threads.
pub fn confine(engine: Engine) -> Result<(), Error> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(|e| Error::Landlock(e.to_string()))?;
    seccompiler::apply_filter_all_threads(&filter(engine)?).map_err(|e| Error::Seccomp(e.to_string()))
}

/// What a running VM calls: memory, threads, waiting, time, and reading and writing descriptors that are open.
const SYSCALLS: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
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
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_socketpair,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// The letter that KVM's ioctls have in bits 15:8 (include/uapi/linux/kvm.h, KVMIO).
const KVM_IOCTLS: u64 = 0xae00;

fn filter(engine: Engine) -> Result<seccompiler::BpfProgram, Error> {
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        TargetArch,
    };

    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|e: seccompiler::BackendError| Error::Seccomp(e.to_string()))?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        SYSCALLS.iter().map(|number| (*number, vec![])).collect();
    // How the standard library makes a socket non-blocking, KVM's own for its engine, and no other ioctl.
    let mut requests = vec![(SeccompCmpOp::Eq, libc::FIONBIO)];
    if engine == Engine::Kvm {
        requests.push((SeccompCmpOp::MaskedEq(0xff00), KVM_IOCTLS));
    }
    let allowed = requests.into_iter().map(|(compare, request)| {
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, compare, request)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|e| Error::Seccomp(e.to_string()))
    });
    rules.insert(libc::SYS_ioctl, allowed.collect::<Result<_, _>>()?);
    // A call that is not listed fails as if it were not permitted, so that a library that merely asks goes on.
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)
        .and_then(TryInto::try_into)
        .map_err(|e| Error::Seccomp(e.to_string()))
}
