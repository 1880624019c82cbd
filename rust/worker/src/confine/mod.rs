//! Takes from the process what a VM does not need, before guest code runs: no path of the file system can be opened
//! any more, no connection made and no program started. It lasts for the life of the process and all its threads.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use macos as system;
use supermachine_machine::Engine;

/// Confines this process. Every file it will use is open by now; no other thread runs yet.
pub fn confine(engine: Engine) -> Result<(), Error> {
    system::confine(engine)
}

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[cfg(target_os = "linux")]
    #[error("the Landlock rules cannot be applied: {0}")]
    Landlock(String),
    #[cfg(target_os = "linux")]
    #[error("the seccomp filter cannot be applied: {0}")]
    Seccomp(String),
    #[cfg(target_os = "macos")]
    #[error("the sandbox profile cannot be applied: {0}")]
    Sandbox(String),
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;

    /// Runs in a process of its own, which stays confined.
    #[test]
    fn a_confined_process_opens_nothing_and_still_works() {
        const CHILD: &str = "SUPERMACHINE_TEST_CONFINED";
        if std::env::var_os(CHILD).is_some() {
            super::confine(supermachine_machine::Engine::Soft).unwrap();
            assert_eq!(File::open("/etc/passwd").unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(
                std::net::TcpStream::connect("127.0.0.1:9").unwrap_err().kind(),
                ErrorKind::PermissionDenied
            );
            assert!(std::process::Command::new("/bin/sh").args(["-c", "exit"]).status().is_err());
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
