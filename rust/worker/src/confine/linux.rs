//! Takes from the process what a VM does not need, before guest code runs: no path of the file system can be opened
//! any more (Landlock), and only listed system calls work (seccomp). Both last for the life of the process and all
//! its threads. A kernel without Landlock leaves that half out.

#[cfg(target_os = "linux")]
use std::collections::BTreeMap;

/// Confines this process. Every file it will use is open by now; no other thread runs yet.
#[cfg(target_os = "linux")]
pub fn confine() -> Result<(), Error> {
    use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};

    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(|e| Error::Landlock(e.to_string()))?;
    seccompiler::apply_filter_all_threads(&filter()?).map_err(|e| Error::Seccomp(e.to_string()))
}

/// Confines this process: on this system there is nothing to do it with yet.
#[cfg(not(target_os = "linux"))]
pub fn confine() -> Result<(), Error> {
    Ok(())
}

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the Landlock rules cannot be applied: {0}")]
    Landlock(String),
    #[error("the seccomp filter cannot be applied: {0}")]
    Seccomp(String),
}

/// What a running VM calls: memory, threads, waiting, time, and reading and writing descriptors that are open.
#[cfg(target_os = "linux")]
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

#[cfg(target_os = "linux")]
fn filter() -> Result<seccompiler::BpfProgram, Error> {
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        TargetArch,
    };

    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|e: seccompiler::BackendError| Error::Seccomp(e.to_string()))?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        SYSCALLS.iter().map(|number| (*number, vec![])).collect();
    // How the standard library makes a socket non-blocking, and no other ioctl.
    let nonblocking = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::FIONBIO)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|e| Error::Seccomp(e.to_string()))?;
    rules.insert(libc::SYS_ioctl, vec![nonblocking]);
    // A call that is not listed fails as if it were not permitted, so that a library that merely asks goes on.
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)
        .and_then(TryInto::try_into)
        .map_err(|e| Error::Seccomp(e.to_string()))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;

    /// Runs in a process of its own, which stays confined.
    #[test]
    fn a_confined_process_opens_nothing_and_still_works() {
        const CHILD: &str = "SUPERMACHINE_TEST_CONFINED";
        if std::env::var_os(CHILD).is_some() {
            super::confine().unwrap();
            assert_eq!(File::open("/etc/passwd").unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(
                std::net::TcpStream::connect("127.0.0.1:9").unwrap_err().kind(),
                ErrorKind::PermissionDenied
            );
            assert!(std::process::Command::new("/bin/true").status().is_err());
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            std::os::unix::net::UnixStream::pair().unwrap().0.set_nonblocking(true).unwrap();
            return;
        }
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "confine::tests::a_confined_process_opens_nothing_and_still_works"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
    }
}
