//! The process that owns one virtual machine. Its standard input is the control socket; it takes no arguments, but for
//! `--probe-kvm`, which tells as JSON what this host's KVM is worth, and `--probe-confinement`, which tells what there
//! is to confine it with.

#![cfg_attr(
    test,
    allow(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "tests make small numbers and bytes of counters"
    )
)]

mod arrival;
mod bake;
mod begun;
mod boot;
mod build_id;
mod capture;
mod clock;
mod code;
mod confine;
mod control;
mod ended;
mod network;
mod owner;
#[cfg(target_os = "linux")]
mod probe;
mod room;
mod scratch;
mod session;
mod shares;
mod start;
#[cfg(target_os = "linux")]
mod template;
mod volumes;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

#[cfg_attr(target_os = "linux", allow(unsafe_code, reason = "descriptors are closed by their numbers"))]
fn main() -> ExitCode {
    end_with_any_panic();
    #[cfg(target_os = "linux")]
    // SAFETY: nothing has been opened.
    unsafe {
        supermachine_support::inherited::close();
    }
    #[cfg(target_os = "linux")]
    if let Some(found) = std::env::args_os().nth(1).and_then(|argument| probe::asked(&argument)) {
        println!("{found}");
        return ExitCode::SUCCESS;
    }
    let control = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => control_socket(fd),
        Err(error) => Err(error),
    };
    match control.and_then(session::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("supermachine-worker: {error}; it is started by supermachine, not by hand");
            ExitCode::FAILURE
        }
    }
}

/// Has a panic of any thread end the process, which its owner is told with what the panic said. A thread that ended
/// alone would leave the others, and everybody outside, to wait for it.
fn end_with_any_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort();
    }));
}

/// The control socket, or an error when standard input is something else.
fn control_socket(fd: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = UnixStream::from(fd);
    stream.peer_addr()?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const CHILD: &str = "SUPERMACHINE_TEST_PANICS";

    /// As a handler of the soft engine does that machine code has called: nothing unwinds through that.
    extern "C" fn called_from_machine_code() {
        panic!("in machine code");
    }

    #[test]
    fn a_panic_of_any_thread_ends_the_process_and_says_why() {
        match std::env::var(CHILD).as_deref() {
            Ok("thread") => {
                super::end_with_any_panic();
                let waits = std::thread::spawn(|| panic!("in a thread"));
                while !waits.is_finished() {
                    std::thread::yield_now();
                }
                unreachable!("the thread has ended alone");
            }
            Ok(_) => {
                super::end_with_any_panic();
                called_from_machine_code();
            }
            Err(_) => {
                for (which, said) in [("thread", "in a thread"), ("code", "in machine code")] {
                    let mut process = Command::new(std::env::current_exe().unwrap());
                    let name = "tests::a_panic_of_any_thread_ends_the_process_and_says_why";
                    let output =
                        process.args(["--exact", name, "--nocapture"]).env(CHILD, which).output().unwrap();
                    assert_eq!(
                        output.status.signal(),
                        Some(rustix::process::Signal::ABORT.as_raw()),
                        "{which}"
                    );
                    let error = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(error.contains(said) && !error.contains("unreachable"), "{error}");
                }
            }
        }
    }
}
