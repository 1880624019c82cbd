//! Decodes code of a snapshot for those that restore it ([`crate::code`]). This process runs no guest: what it writes
//! is of the snapshot's memory alone, into a file that was opened for that.

use std::fs::File;
use std::io::Write;

use supermachine_machine::snapshot::v9;
use supermachine_machine::{Engine, Ground};
use supermachine_proto::VERSION;
use supermachine_proto::limits::MAX_CODE;
use supermachine_proto::worker::{Bake, ExitReason};

use crate::code;
use crate::ended::Ended;
use crate::start;

/// Makes the file: opens the snapshot, confines the process, decodes, and writes.
pub(crate) fn serve(bake: &Bake, mut to: File) -> Ended {
    match decoded(bake)
        .and_then(|bytes| to.write_all(&bytes).map_err(|e| Ended::new(ExitReason::Engine, e.to_string())))
    {
        Ok(()) => Ended::new(ExitReason::Shutdown, "the code is decoded"),
        Err(ended) => ended,
    }
}

fn decoded(bake: &Bake) -> Result<Vec<u8>, Ended> {
    if bake.version != VERSION {
        return Err(Ended::bad(format!("the worker speaks version {VERSION} and the API {}", bake.version)));
    }
    let chain = bake.files.iter().map(|path| start::leased(path)).collect::<Result<Vec<_>, _>>()?;
    let refused = |e: &dyn std::fmt::Display| Ended::new(ExitReason::BadSnapshot, e.to_string());
    let state = code::state(&chain).map_err(|e| refused(&e))?;
    start::confine_alone(bake.require_confinement)?;
    let opened = v9::open(chain, Vec::new()).map_err(|e| refused(&e))?;
    if opened.engine != Engine::Soft {
        return Err(Ended::bad("only the soft engine decodes code"));
    }
    let key = code::key(&opened.origin.id, &state)
        .ok_or_else(|| Ended::bad("this build of the worker cannot be told from others"))?;
    let v9::Opened { memory_bytes, backing, state, .. } = opened;
    let ground =
        Ground::new(Engine::Soft, memory_bytes, backing, &state, &mut |_| {}).map_err(|e| refused(&e))?;
    Ok(ground.bake(bake.places.get(..MAX_CODE).unwrap_or(&bake.places), &key))
}
