//! QEMU's user emulation as the oracle: builds runner.c for arm64 and talks to it.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use supermachine_soft::Regs;

/// Instructions in a sequence, at most.
pub(crate) const INSNS: usize = 16;
/// Bytes of memory that a sequence may touch.
pub(crate) const MEMORY: usize = 1024;
/// Where that memory is, for the oracle and for us.
pub(crate) const BASE: u64 = 0x5000_0000;
/// Sequences in a batch, at most.
pub(crate) const BATCH: usize = 512;

pub(crate) const SIGILL: u32 = 4;

/// `struct state` of runner.c.
#[derive(Clone, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct State {
    pub x: [u64; 29],
    pub sp: u64,
    pub nzcv: u64,
    pub fpcr: u64,
    pub fpsr: u64,
    /// Number of the signal that ended the sequence, or 0, and the instruction that raised it.
    pub signal: u32,
    pub at: u32,
    pub v: [u128; 32],
    pub memory: [u8; MEMORY],
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            x: [0; 29],
            sp: BASE + MEMORY as u64 / 2,
            nzcv: 0,
            fpcr: 0,
            fpsr: 0,
            signal: 0,
            at: 0,
            v: [0; 32],
            memory: [0; MEMORY],
        }
    }

    /// As the runner reports a sequence that ended with a signal.
    pub(crate) fn signalled(signal: u32, at: u32) -> Self {
        Self { signal, at, sp: 0, ..Self::new() }
    }

    pub(crate) fn regs(&self) -> Regs {
        let mut r = Regs::default();
        r.x[..29].copy_from_slice(&self.x);
        r.x[Regs::SP] = self.sp;
        r.nzcv = self.nzcv as u32;
        r.fpcr = self.fpcr as u32;
        r.fpsr = self.fpsr as u32;
        r.v = self.v;
        r
    }

    pub(crate) fn take(&mut self, r: &Regs) {
        self.x.copy_from_slice(&r.x[..29]);
        self.sp = r.x[Regs::SP];
        self.nzcv = r.nzcv.into();
        self.fpcr = r.fpcr.into();
        self.fpsr = r.fpsr.into();
        self.v = r.v;
    }

    /// What differs, a line each: name, ours, the oracle's.
    pub(crate) fn difference(&self, oracle: &Self) -> String {
        let mut out = String::new();
        let mut line = |name: String, a: u128, b: u128| {
            if a != b {
                out += &format!("  {name}: ours {a:#x}, oracle {b:#x}\n");
            }
        };
        line("signal".into(), self.signal.into(), oracle.signal.into());
        line("at".into(), self.at.into(), oracle.at.into());
        if self.signal != oracle.signal {
            return out;
        }
        for n in 0..29 {
            line(format!("x{n}"), self.x[n].into(), oracle.x[n].into());
        }
        line("sp".into(), self.sp.into(), oracle.sp.into());
        line("nzcv".into(), self.nzcv.into(), oracle.nzcv.into());
        line("fpcr".into(), self.fpcr.into(), oracle.fpcr.into());
        line("fpsr".into(), self.fpsr.into(), oracle.fpsr.into());
        for n in 0..32 {
            line(format!("v{n}"), self.v[n], oracle.v[n]);
        }
        for n in 0..MEMORY {
            line(format!("memory[{n}]"), self.memory[n].into(), oracle.memory[n].into());
        }
        out
    }
}

/// `struct request` of runner.c.
#[derive(Clone, Debug)]
#[repr(C)]
pub(crate) struct Request {
    pub state: State,
    pub count: u32,
    pad: u32,
    pub insns: [u32; INSNS],
    pad2: u64,
}

impl Request {
    pub(crate) fn new(state: State, code: &[u32]) -> Self {
        let mut insns = [0; INSNS];
        insns[..code.len()].copy_from_slice(code);
        Self { state, count: code.len() as u32, pad: 0, insns, pad2: 0 }
    }

    pub(crate) fn code(&self) -> &[u32] {
        &self.insns[..self.count as usize]
    }
}

const _: () = assert!(size_of::<State>() == 1808 && size_of::<Request>() == 1888);

/// The running oracle, and its program, which goes with it.
pub(crate) struct Oracle(Child, PathBuf);

impl Oracle {
    /// Starts QEMU with the CPU model `cpu`. `Err` says what is missing here.
    pub(crate) fn start(cpu: &str) -> Result<Self, String> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/differential/runner.c");
        let binary = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!(
            "differential-runner-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let built = Command::new("aarch64-linux-gnu-gcc")
            .args(["-O1", "-static", "-o"])
            .arg(&binary)
            .arg(source)
            .status()
            .map_err(|e| format!("aarch64-linux-gnu-gcc does not start: {e}"))?;
        assert!(built.success(), "runner.c does not compile");
        let child = Command::new("qemu-aarch64-static")
            .args(["-cpu", cpu])
            .arg(&binary)
            .arg(format!("{BASE:#x}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("qemu-aarch64-static does not start: {e}"))?;
        Ok(Self(child, binary))
    }

    /// As [`Oracle::start`]; missing tools skip the test, visibly, but fail it under CI.
    pub(crate) fn start_or_skip(cpu: &str) -> Option<Self> {
        match Self::start(cpu) {
            Ok(oracle) => Some(oracle),
            Err(why) if std::env::var_os("CI").is_some() => panic!("{why}"),
            Err(why) => {
                println!("SKIPPED: {why}");
                None
            }
        }
    }

    /// The states after each of up to [`BATCH`] requests.
    pub(crate) fn run(&mut self, requests: &[Request]) -> Vec<State> {
        assert!(requests.len() <= BATCH);
        let input = self.0.stdin.as_mut().expect("a pipe");
        // SAFETY: Request has no padding (its size is asserted above), so all its bytes are initialised.
        let bytes = unsafe {
            std::slice::from_raw_parts(requests.as_ptr().cast::<u8>(), std::mem::size_of_val(requests))
        };
        input.write_all(&(requests.len() as u32).to_le_bytes()).expect("the oracle reads");
        input.write_all(bytes).expect("the oracle reads");
        input.flush().expect("the oracle reads");
        let mut states = vec![State::new(); requests.len()];
        // SAFETY: State is plain data without padding, and any bytes are a State.
        let bytes = unsafe {
            let len = std::mem::size_of_val(&states[..]);
            std::slice::from_raw_parts_mut(states.as_mut_ptr().cast::<u8>(), len)
        };
        self.0.stdout.as_mut().expect("a pipe").read_exact(bytes).expect("the oracle answers");
        states
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // End of input ends the runner.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
        let _ = std::fs::remove_file(&self.1);
    }
}
