//! What this host has: its KVM, for who chooses an engine, and what a worker can be confined with.

use std::ffi::OsStr;

use serde_json::{Value, json};
use supermachine_machine::kvm::probe::{self, Measurement};

use crate::confine::Walls;

/// The answer to a question on the command line; `None` when it is none.
pub(crate) fn asked(argument: &OsStr) -> Option<Value> {
    match argument.to_str()? {
        "--probe-kvm" => Some(kvm()),
        "--probe-confinement" => Some(confinement()),
        _ => None,
    }
}

/// `landlock`, its version or 0; `seccomp`; `missing`, a sentence with the way out, or null; and `interprets`, why the
/// soft engine translates no code here, or null.
fn confinement() -> Value {
    let walls = Walls::of_this_system();
    json!({ "landlock": walls.landlock, "seccomp": walls.seccomp, "missing": walls.missing(), "interprets": supermachine_machine::interprets() })
}

/// `usable`; `code`, why not in a word or two; `status`, a sentence; `remedy`, a command or a sentence, or null; and
/// what was measured, or null.
pub(crate) fn kvm() -> Value {
    let measured = probe::measure();
    let rates = measured.clone().ok();
    let (usable, code, status, remedy) = match measured.and_then(Measurement::judge) {
        Ok(Measurement { instructions_per_second, exit_nanoseconds }) => {
            let (rate, exit) = (instructions_per_second / 1_000_000, exit_nanoseconds as f64 / 1000.0);
            (true, "usable", format!("{rate} million instructions a second, {exit:.1} µs an exit"), None)
        }
        Err(reason) => (false, reason.code(), reason.to_string(), reason.remedy()),
    };
    json!({
        "usable": usable,
        "code": code,
        "status": status,
        "remedy": remedy,
        "instructions_per_second": rates.map(|rates| rates.instructions_per_second),
        "exit_nanoseconds": rates.map(|rates| rates.exit_nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_missing_to_confine_a_worker_is_said() {
        let said = super::confinement();
        let complete = said["landlock"].as_u64().unwrap() > 0 && said["seccomp"].as_bool().unwrap();
        assert_eq!(said["missing"].is_null(), complete, "{said}");
    }

    #[test]
    fn a_verdict_is_given_with_its_reason() {
        let verdict = super::kvm();
        let usable = verdict["usable"].as_bool().unwrap();
        assert_eq!(verdict["code"] == "usable", usable, "{verdict}");
        assert!(verdict["status"].as_str().is_some_and(|status| !status.is_empty()), "{verdict}");
        // What was measured is told even when it is too little.
        let measured = usable || verdict["code"] == "too slow";
        assert_eq!(verdict["instructions_per_second"].is_u64(), measured, "{verdict}");
    }
}
