//! The disassembler's text against GNU objdump's, word for word: random words, and the C library that comes with the
//! cross compiler.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use supermachine_soft::disassemble;

const OBJDUMP: &str = "aarch64-linux-gnu-objdump";

fn output(program: &str, args: &[&str]) -> String {
    let made = Command::new(program).args(args).output();
    let made = made.unwrap_or_else(|e| panic!("{program} does not start: {e}"));
    assert!(made.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).expect("text")
}

/// What objdump adds to an instruction, and what an encoding says without effect, taken away.
fn plain(text: &str) -> String {
    let text = text.split("//").next().unwrap_or_default();
    let text = text.split(" <").next().unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.replace(", lsl #0]", "]").replace("#0x0, lsl #12", "#0x0");
    ["uxtw", "sxtw", "sxtx"].iter().fold(text, |t, e| t.replace(&format!("{e} #0]"), &format!("{e}]")))
}

/// A system register or instruction by its encoding, which objdump may have a name for.
fn is_generic(text: &str) -> bool {
    text.starts_with("sys ")
        || text.split([' ', ',']).any(|part| {
            let mut c = part.chars();
            c.next() == Some('s') && c.next().is_some_and(|c| c.is_ascii_digit()) && part.contains("_c")
        })
}

/// Compares each line of objdump's; how many instructions there were, and how many had a name.
fn compare(listing: &str) -> (usize, usize) {
    let (mut all, mut named, mut wrong) = (0, 0, Vec::new());
    for line in listing.lines() {
        let mut fields = line.splitn(3, '\t');
        let (Some(at), Some(word), Some(theirs)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let Ok(at) = u64::from_str_radix(at.trim().trim_end_matches(':'), 16) else { continue };
        let word = u32::from_str_radix(word.trim(), 16).expect("an instruction word");
        let ours = disassemble(word, at);
        all += 1;
        if ours.starts_with(".inst") {
            continue;
        }
        named += 1;
        let theirs = plain(theirs);
        // For what an encoding should have as ones, and for registers that are in each other's way, these are undefined
        // there and (which the architecture allows) done here.
        let lenient = ours.starts_with("ldar") || ours.starts_with("ldpsw");
        if lenient && theirs.ends_with("undefined") {
            continue;
        }
        if ours != theirs && !is_generic(&ours) {
            wrong.push(format!("{at:x}: {word:08x}: {ours:?}, objdump {theirs:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {named} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(80)].join("\n")
    );
    (all, named)
}

/// A file of its own, which is removed in the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Scratch {
    fn path(&self) -> &str {
        self.0.to_str().expect("a plain path")
    }
}

fn scratch(name: &str) -> Scratch {
    Scratch(std::env::temp_dir().join(format!("supermachine-{name}-{}", std::process::id())))
}

/// What objdump says of a file that is nothing but instructions.
fn listing(file: &Scratch) -> String {
    output(OBJDUMP, &["-D", "-z", "-b", "binary", "-m", "aarch64", file.path()])
}

#[test]
fn random_words() {
    let file = scratch("words");
    let mut state = 0x5eed_u64;
    let words: Vec<u8> = (0..300_000)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 32) as u32).to_le_bytes()
        })
        .collect();
    std::fs::write(&file.0, words).expect("a file for objdump");
    let (all, named) = compare(&listing(&file));
    println!("{named} of {all} named");
    assert_eq!(all, 300_000);
    assert!(named * 4 > all, "only {named} of {all} have names");
}

#[test]
fn the_c_library() {
    let path = output("aarch64-linux-gnu-gcc", &["-print-file-name=libc.so.6"]);
    let path = path.trim();
    assert!(Path::new(path).is_absolute(), "the cross compiler has no C library");
    let file = scratch("text");
    output("aarch64-linux-gnu-objcopy", &["-O", "binary", "-j", ".text", path, file.path()]);
    let (all, named) = compare(&listing(&file));
    println!("{named} of {all} named");
    assert!(all > 100_000, "only {all} instructions in {path}");
    assert!(named * 100 > all * 98, "only {named} of {all} have names");
}
