//! What this host's KVM is worth, for who chooses an engine.

use serde_json::{Value, json};
use supermachine_machine::kvm::probe::{self, Measurement};

/// `usable`; `code`, why not in a word or two; `status`, a sentence; `remedy`, a command or a sentence, or null; and what
/// was measured, or null.
pub fn kvm() -> Value {
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
