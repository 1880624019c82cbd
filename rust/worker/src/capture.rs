//! Takes a snapshot of a guest that goes on afterwards.

use std::fs::File;
use std::time::{Duration, Instant};

use supermachine_support::elapsed_ns;

use supermachine_machine::Machine;
use supermachine_machine::pages::PageMap;
use supermachine_machine::snapshot::v8;
use supermachine_machine::snapshot::v9::{self, About, Origin, Scope};
use supermachine_proto::agent::{BootCommand, BootEvent, Chunk};
use supermachine_proto::worker::{Capture, Captured};
use supermachine_snapshot::v8::{Listener, Unfinished};
use supermachine_snapshot::{Digest32, v9 as format};
use supermachine_storage::scratch::Scratch;

use crate::boot::BootChannel;
use crate::scratch;
use crate::volumes::Volumes;

/// How long the agent may take to stop the guest's processes, or to let them go on.
const AGENT: Duration = Duration::from_secs(10);

/// Why no snapshot was taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the guest's agent did not {what} within {} s", AGENT.as_secs())]
    Agent { what: &'static str },
    #[error("the snapshot that the VM goes on from is not all there yet")]
    Incomplete,
    #[error(transparent)]
    Machine(#[from] supermachine_machine::Error),
    #[error(transparent)]
    Snapshot(#[from] supermachine_snapshot::Error),
}

/// What all snapshots of one VM have in common.
pub(crate) struct Subject {
    pub kernel: Digest32,
    pub initramfs: Digest32,
    pub page_map: Option<PageMap>,
    pub origin: Option<Origin>,
    /// What a snapshot of version 8 says of the ports that the guest listens on.
    pub listeners: Vec<Listener>,
    /// The disk that belongs to the machine.
    pub scratch: Option<Scratch>,
    pub volumes: Volumes,
    /// Whether there is an agent that stops the guest's processes first.
    pub agent: bool,
}

/// Format of a snapshot, and how much of RAM is in it.
enum Form {
    V8,
    V9(Scope),
}

/// A snapshot that lacks what the guest need not stand still for.
enum Written {
    V8(Unfinished),
    V9(Box<format::Writer>),
}

impl Subject {
    /// Writes the snapshot to `file`.
    pub(crate) fn capture(
        &self,
        machine: &Machine,
        boot: &BootChannel,
        request: Capture,
        file: &File,
    ) -> Result<Captured, Error> {
        let began = Instant::now();
        if !machine.is_complete() {
            return Err(Error::Incomplete);
        }
        let (form, kept) = (self.form(&request)?, !request.code);
        let mut steps = Vec::new();
        let mut step = |name: &str| steps.push((name.to_owned(), elapsed_ns(began)));
        let ask = |command, answer, what| match !self.agent || boot.ask(&command, &answer, AGENT) {
            true => Ok(()),
            false => Err(Error::Agent { what }),
        };
        ask(BootCommand::Freeze, BootEvent::Frozen, "stop the guest's processes")?;
        step("freeze");
        let paused_at = Instant::now();
        let written = self.write(machine, form, request, file);
        let pause_ns = elapsed_ns(paused_at);
        step("ram");
        // Whatever came of it, the guest goes on.
        let thawed = ask(BootCommand::Thaw, BootEvent::Thawed, "let the guest's processes go on");
        step("thaw");
        let (id, data_bytes) = match written? {
            Written::V9(writer) => {
                let finished = if kept { writer.finish() } else { writer.finish_unkept() };
                finished.map(|summary| (summary.id.0.to_vec(), summary.data_bytes))?
            }
            Written::V8(file_without_header) => {
                file_without_header.finish(file)?;
                let stat = rustix::fs::fstat(file).map_err(std::io::Error::from);
                let blocks = stat.map_err(supermachine_machine::Error::from)?.st_blocks;
                (Vec::new(), u64::try_from(blocks).unwrap_or_default() * 512)
            }
        };
        thawed?;
        step("sync");
        Ok(Captured { id: Chunk(id), data_bytes, pause_ns, steps })
    }

    /// What is to be written. Refuses what cannot be, and looks at the files of the origin, while the guest still runs.
    fn form(&self, request: &Capture) -> Result<Form, supermachine_machine::Error> {
        match (request.v8, request.diff) {
            (true, true) => Err(supermachine_machine::Error::State {
                part: "format".into(),
                reason: "version 8 has no diffs; take a whole one".into(),
            }),
            (true, false) if self.scratch.is_some() => Err(supermachine_machine::Error::State {
                part: "format".into(),
                reason: "version 8 cannot hold the root's disk; start the machine with disk=0".into(),
            }),
            (true, false) => Ok(Form::V8),
            (false, diff) => Scope::of(self.origin.as_ref(), diff).map(Form::V9),
        }
    }

    /// Everything that the guest stands still for.
    fn write(
        &self,
        machine: &Machine,
        form: Form,
        request: Capture,
        file: &File,
    ) -> Result<Written, supermachine_machine::Error> {
        let disk = request.disk_elsewhere;
        let about = About {
            kernel: self.kernel,
            initramfs: self.initramfs,
            image: request.image,
            api: request.api.0,
            code: request.code,
        };
        let paused = machine.pause()?;
        if request.volume_mark != [0; 16] {
            self.volumes.set_mark(request.volume_mark)?;
        }
        match form {
            Form::V8 => v8::write(&paused, &self.listeners, file).map(Written::V8),
            Form::V9(scope) => {
                let disk = self
                    .scratch
                    .as_ref()
                    .map(|scratch| scratch::sealed(scratch, &scope, disk))
                    .transpose()?;
                let written = v9::write(&paused, file, about, self.page_map.as_ref(), &scope, disk);
                written.map(|writer| Written::V9(Box::new(writer)))
            }
        }
    }
}
