//! From the kernel's first process to a guest that serves requests, and the boot connection after that.

use std::fs::File;
use std::io::{self, BufReader};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use supermachine_proto::agent::{
    AttachReply, BOOT_PORT, BootCommand, BootEvent, Configure, HOST_CID, Identity, REQUEST_PORT,
};
use supermachine_proto::{VERSION, frame};

use crate::{
    attach, authority, connections, exec, freeze, identity, init, limits, mounts, network, reaper, room,
    root, server, spare, sys, volumes,
};

/// Between two attempts to reach a host that has just been restored.
const RETRY: Duration = Duration::from_millis(5);
/// Bytes that most commands have at most.
const COMMAND: usize = 1 << 10;

/// Why the guest cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the boot connection failed: {0}")]
    Connection(#[from] frame::Error),
    #[error(transparent)]
    Mount(#[from] mounts::Error),
    #[error("{what} failed: {error}")]
    Step { what: &'static str, error: io::Error },
}

fn step(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Step { what, error }
}

/// Serves the guest until it is shut down; returns only with an error.
pub(crate) fn run() -> Error {
    let mut configured = false;
    loop {
        let mut host = match sys::connect_vsock(HOST_CID, BOOT_PORT) {
            Ok(host) => host,
            Err(_) if configured => {
                std::thread::sleep(RETRY);
                continue;
            }
            Err(error) => return step("reaching the host")(error),
        };
        if let Err(error) = converse(&host, &mut configured) {
            // The host's other end is told, if it is there; without a root nothing else can be done. A guest that was
            // restored has lost it, and would only take time to find words.
            if !matches!(error, Error::Connection(frame::Error::Io(_))) {
                let _ = frame::write(&mut host, &BootEvent::Failed { message: error.to_string() });
            }
            if !configured {
                return error;
            }
        }
    }
}

/// One boot connection, to its end.
fn converse(host: &File, configured: &mut bool) -> Result<(), Error> {
    frame::write(&mut &*host, &BootEvent::Hello { version: VERSION, kernel: kernel_release() })?;
    // One call reads a command, its length included.
    let mut commands = BufReader::with_capacity(COMMAND, host);
    while let Some(command) = frame::read::<BootCommand>(&mut commands)? {
        match command {
            BootCommand::Configure(configure) => {
                prepare(&configure)?;
                *configured = true;
                frame::write(&mut &*host, &BootEvent::Ready)?;
            }
            BootCommand::Freeze => {
                exec::prepare();
                freeze::freeze(spare::is).map_err(step("stopping the guest's processes"))?;
                connections::count();
                identity::look_at_hosts();
                network::look();
                volumes::freeze();
                frame::write(&mut &*host, &BootEvent::Frozen)?;
            }
            BootCommand::Thaw => {
                identity::leave_hosts();
                network::leave();
                volumes::thaw();
                freeze::thaw().map_err(step("letting the guest's processes go on"))?;
                frame::write(&mut &*host, &BootEvent::Thawed)?;
            }
            BootCommand::Renew(new) => {
                sys::set_clock(new.wall_clock_ns).map_err(step("setting the guest's clock"))?;
                root::writable(|| renew(&new))?;
                room::lift();
                volumes::thaw();
                freeze::thaw_renewed().map_err(step("letting the guest's processes go on"))?;
                frame::write(&mut &*host, &BootEvent::Renewed)?;
            }
            BootCommand::Clock { wall_clock_ns } => {
                sys::set_clock(wall_clock_ns).map_err(step("setting the guest's clock"))?;
                frame::write(&mut &*host, &BootEvent::ClockSet)?;
            }
            BootCommand::Room { device, bytes } => {
                // A disk without such a file system (its user made another) has its limits elsewhere.
                let _ = room::set(&device, bytes);
                frame::write(&mut &*host, &BootEvent::RoomSet)?;
            }
            BootCommand::Grow { device, bytes } => {
                let done = matches!(attach::grow(&device, bytes), AttachReply::Done);
                frame::write(&mut &*host, &BootEvent::Grown { done })?;
            }
            BootCommand::Shutdown { grace_ms } => {
                let end = Instant::now() + Duration::from_millis(grace_ms.into());
                init::halt(end);
                reaper::end_all(end.saturating_duration_since(Instant::now()));
                attach::end();
                sys::sync();
                let _ = frame::write(&mut &*host, &BootEvent::Stopping);
                sys::power_off();
            }
        }
    }
    Ok(())
}

/// Makes a guest that was restored another one.
fn renew(new: &Identity) -> Result<(), Error> {
    identity::assume(new).map_err(step("renewing the guest's identity"))?;
    identity::rename_hosts(&new.hostname).map_err(step("renaming the guest in /etc"))?;
    // Without them programs would wait for answers that cannot come; where the kernel cannot, they do.
    let _ = connections::end_all();
    network::assume(new.network.as_ref(), true).map_err(step("taking the guest's place on its network"))?;
    authority::trust(&new.authority);
    Ok(())
}

/// Makes the guest what the host describes, and starts to serve requests.
fn prepare(configure: &Configure) -> Result<(), Error> {
    // Before anything is made, so that it has the time at which it was.
    sys::set_clock(configure.identity.wall_clock_ns).map_err(step("setting the guest's clock"))?;
    mounts::mount_all(configure)?;
    limits::set().map_err(step("setting the limits of the guest's processes"))?;
    identity::assume(&configure.identity).map_err(step("taking on the guest's identity"))?;
    identity::write_hosts(&configure.identity.hostname);
    mounts::date_root();
    freeze::prepare().map_err(step("making the control group of the guest's processes"))?;
    loopback_up().map_err(step("bringing up the loopback interface"))?;
    let place = configure.identity.network.as_ref();
    network::assume(place, false).map_err(step("taking the guest's place on its network"))?;
    authority::trust(&configure.identity.authority);
    connections::prepare();
    network::prepare();
    reaper::start().map_err(step("starting the reaper"))?;
    let listener = sys::listen_vsock(REQUEST_PORT).map_err(step("listening for requests"))?;
    server::start(listener).map_err(step("starting to serve requests"))
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: all zeros is a valid ifreq; the ioctls read the name and the flags in it.
    unsafe {
        let socket = sys::check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[..2].copy_from_slice(&sys::chars(*b"lo"));
        request.ifr_ifru.ifru_flags = sys::short(libc::IFF_UP | libc::IFF_RUNNING).cast_signed();
        let done = sys::check(libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request));
        libc::close(socket);
        done.map(drop)
    }
}

fn kernel_release() -> String {
    /// A guest that is restored has not another.
    static RELEASE: OnceLock<String> = OnceLock::new();
    let asked = || {
        // SAFETY: all zeros is a valid utsname, which the call fills with NUL-terminated strings.
        unsafe {
            let mut names: libc::utsname = std::mem::zeroed();
            libc::uname(&mut names);
            std::ffi::CStr::from_ptr(names.release.as_ptr()).to_string_lossy().into_owned()
        }
    };
    RELEASE.get_or_init(asked).clone()
}
