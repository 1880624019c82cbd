//! What the policy process adds to a connection: from a worker's question to the connected descriptor in its hands, by
//! turns with a bare connection to the same listener. `cargo bench -p supermachine-netd`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use supermachine_netd::channel::Channel;
use supermachine_proto::netd::{Command, Policy, Preset, Protocol, Reply, Request, Start};

const ROUNDS: usize = 2000;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

fn main() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || listener.incoming().for_each(drop));

    let (control, theirs) = UnixStream::pair()?;
    let mut process = Process::new(env!("CARGO_BIN_EXE_supermachine-netd"))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()?;
    let (link, worker) = UnixStream::pair()?;
    let (mut control, mut link) = (Channel::new(control)?, Channel::new(link)?);
    let policy = Policy { preset: Preset::Nothing, allow: vec!["host".into()], deny: Vec::new() };
    let start = Start {
        version: supermachine_proto::VERSION,
        policy,
        dns: Vec::new(),
        guest: Ipv4Addr::new(10, 0, 2, 15),
        guest_v6: None,
        gateway: vec![GATEWAY.into()],
        audit: false,
        secrets: None,
    };
    control.send(&Command::Start(Box::new(start)), Some(worker.into()))?;

    let (mut bare, mut asked, mut differences) = (Vec::new(), Vec::new(), Vec::new());
    for flow in 0..ROUNDS as u64 + 100 {
        let began = Instant::now();
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?);
        let direct = began.elapsed();
        let began = Instant::now();
        ask(&mut link, flow, (GATEWAY, port).into())?;
        let through = began.elapsed();
        // The first ones start the process.
        if flow >= 100 {
            bare.push(direct);
            asked.push(through);
            differences.push(through.saturating_sub(direct));
        }
    }
    for (what, times) in [("bare", &mut bare), ("through it", &mut asked), ("beyond that", &mut differences)]
    {
        times.sort_unstable();
        let at = |part: usize| micros(times[(times.len() * part / 100).min(times.len() - 1)]);
        println!("{what}: p50 {:.1} us, p90 {:.1} us, p99 {:.1} us", at(50), at(90), at(99));
    }
    drop(control);
    process.wait().map(drop)
}

/// Asks for a flow, and has it.
fn ask(link: &mut Channel, flow: u64, destination: SocketAddr) -> io::Result<()> {
    let source = (Ipv4Addr::new(10, 0, 2, 15), 40_000).into();
    link.send(&Request::Open { flow, protocol: Protocol::Tcp, source, destination }, None)?;
    loop {
        poll(&mut [PollFd::new(link, PollFlags::IN)], None)?;
        if !link.receive()? {
            return Err(io::Error::other("the policy process is gone"));
        }
        match link.take::<Reply>().map_err(io::Error::other)? {
            Some(Reply::Granted { .. }) => {
                drop(link.take_fd());
                return link
                    .send(&Request::Closed { flow, how: supermachine_proto::netd::Ended::Over }, None);
            }
            Some(other) => return Err(io::Error::other(format!("{other:?}"))),
            None => {}
        }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
