//! Takes from the process what it does not need: it opens no path, starts no program, and makes sockets of IP only.

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
#[error("the policy process cannot be confined: {0}")]
pub struct Error(String);

/// Lets this process do nothing from here on but what netd needs. What it has open stays open.
#[cfg(target_os = "linux")]
pub fn confine() -> Result<(), Error> {
    use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let failed = |error: &dyn std::fmt::Display| Error(error.to_string());
    // Secrets are in its memory: no core dump has them, and no process of the same user reads them.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| failed(&error))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| failed(&error))?;
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(|error| failed(&error))?;
    seccompiler::apply_filter_all_threads(&linux::filter()?).map_err(|error| failed(&error))
}

/// Leaves the calling thread, and those that it makes, the system calls alone that the process has. The tests run a
/// server so.
#[cfg(target_os = "linux")]
pub fn confine_thread() -> Result<(), Error> {
    seccompiler::apply_filter(&linux::filter()?).map_err(|error| Error(error.to_string()))
}

/// Leaves the calling thread as it is: only Linux has a filter.
#[cfg(not(target_os = "linux"))]
pub fn confine_thread() -> Result<(), Error> {
    Ok(())
}

/// The same on other systems than Linux.
#[cfg(not(target_os = "linux"))]
pub fn confine() -> Result<(), Error> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|error| Error(error.to_string()))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;

    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
        SeccompFilter, SeccompRule,
    };

    use super::Error;

    /// Memory, threads, time, and descriptors that are open.
    const SYSCALLS: &[i64] = &[
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_close,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_fcntl,
        libc::SYS_futex,
        libc::SYS_getpeername,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_gettid,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_ppoll,
        libc::SYS_read,
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
        libc::SYS_write,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
    ];

    /// include/uapi/asm-generic/ioctls.h; the C libraries differ in its type.
    const FIONBIO: u64 = 0x5421;

    pub(super) fn filter() -> Result<BpfProgram, Error> {
        let failed = |error: BackendError| Error(error.to_string());
        let rule = |argument, value: u64| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
                .and_then(|condition| SeccompRule::new(vec![condition]))
                .map_err(failed)
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            SYSCALLS.iter().map(|number| (*number, vec![])).collect();
        // Of IP alone, and how the standard library makes a socket non-blocking.
        let families = [libc::AF_INET, libc::AF_INET6];
        let families = families
            .map(|family| rule(0, family.cast_unsigned().into()))
            .into_iter()
            .collect::<Result<_, _>>()?;
        rules.insert(libc::SYS_socket, families);
        rules.insert(libc::SYS_ioctl, vec![rule(1, FIONBIO)?]);
        let arch = std::env::consts::ARCH.try_into().map_err(failed)?;
        SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)
            .and_then(TryInto::try_into)
            .map_err(failed)
    }
}
