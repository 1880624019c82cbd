//! What is made beside snapshots is told apart by the build of the program that made it: its linker says which that is.
//!
//! On macOS the framework's functions may be missing: an older system lacks those of the interrupt controller, and the
//! worker must live to say so.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-link-arg-bins=-Wl,--build-id");
    }
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        println!("cargo::rustc-link-arg-bins=-Wl,-weak_framework,Hypervisor");
    }
}
