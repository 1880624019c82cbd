//! Places at which tests end the process as kill -9 would.

/// Ends the process when a test asked for it here.
#[cfg(test)]
pub(crate) fn point(name: &str) {
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).expect("a process may kill itself");
    }
}

/// Names the place at which a child of a test dies.
#[cfg(test)]
pub(crate) const VARIABLE: &str = "SUPERMACHINE_TEST_FAULT";

#[cfg(not(test))]
pub(crate) fn point(_: &str) {}
