//! PID 1 of a guest: mounts, processes, files, clock and entropy, for the host at the other end of vsock.

#![allow(unsafe_code, reason = "the first process is made of calls that the standard library has not")]

mod attach;
mod authority;
mod boot;
mod connections;
mod drain;
mod exec;
mod files;
mod fill;
mod forward;
mod freeze;
mod identity;
mod init;
mod limits;
mod mounts;
mod network;
mod network_v6;
mod reaper;
mod room;
mod root;
mod server;
mod shares;
mod spare;
mod spawn;
mod sys;
mod threads;
mod tmpfs;
mod user;
mod volumes;
mod watch;

fn main() {
    sys::keep_memory();
    let error = boot::run();
    // PID 1 must not return: the kernel would panic and hide what went wrong.
    eprintln!("supermachine-agent: {error}");
    sys::power_off();
}
