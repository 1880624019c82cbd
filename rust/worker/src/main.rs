//! The process that owns one virtual machine. Its standard input is the control socket; it takes no arguments, but for
//! `--probe-kvm`, which tells as JSON what this host's KVM is worth, and `--probe-confinement`, which tells what there is to
//! confine it with.

#![deny(unsafe_code)]

mod boot;
mod boot_files;
mod capture;
mod clock;
mod confine;
mod control;
mod network;
mod owner;
#[cfg(target_os = "linux")]
mod probe;
mod room;
mod scratch;
mod session;
mod shares;
mod start;
mod volumes;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
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

/// The control socket, or an error when standard input is something else.
fn control_socket(fd: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = UnixStream::from(fd);
    stream.peer_addr()?;
    Ok(stream)
}
