//! Which instructions are left to the interpreter's handlers, as a list that changes on purpose only: `left.txt`.

use std::collections::BTreeMap;

use super::aarch64::Arm64;
use super::x86_64::X86;
use super::{Code, Entries, Host, Input};
use crate::fp;
use crate::interp::block::Block;
use crate::isa::{self, insn::Insn};

/// Instructions of one name that are looked at.
const MOST: usize = 400;
/// An instruction that ends each block.
const UDF: u32 = 0;

/// How often instructions of one name were left, and looked at, by host.
type Seen = BTreeMap<String, [(usize, usize); 2]>;

/// The words to look at: all but for what registers there are, which are set where they tell instructions apart.
fn words() -> impl Iterator<Item = u32> {
    // Not in order: the first ones of a name are to be of all kinds.
    let upper = (0..1_u32 << 22).map(|n| n.wrapping_mul(2_654_435_761) << 10 | 5 << 5 | 2);
    let system = (0..1_u32 << 17).flat_map(|n| [2, 31].map(|t| 0xd500_0000 | n << 5 | t));
    let compared = (0..1_u32 << 5).flat_map(|low| {
        [
            0x1e20_20a0,
            0x1e60_20a0,
            0x1ee0_20a0,
            0x1e21_04a0,
            0x1e61_04a0,
            0x3a41_00a0,
            0x7a41_08a0,
            0x3a00_08a0,
            0x3a00_48a0,
        ]
        .map(|w| w | low)
    });
    let branches = [
        0xd61f_00a0,
        0xd63f_00a0,
        0xd65f_00a0,
        0xd69f_03e0,
        0xd400_0001,
        0xd400_0002,
        0xd400_0003,
        0xd420_0000,
    ];
    upper.chain(system).chain(compared).chain(branches)
}

fn name(word: u32) -> Option<String> {
    match isa::decode(word, 0) {
        Insn::Undefined => return None,
        Insn::Simd => {
            fp::decode(word)?;
        }
        _ => {}
    }
    let text = isa::disassemble(word, 0);
    let first = text.split_whitespace().next().unwrap_or_default();
    match (first, isa::decode(word, 0)) {
        (".inst", Insn::Simd) => match isa::simd::decode(word) {
            Some(_) => Some("movi and its kind".into()),
            None => Some("vectors and halves without a name".into()),
        },
        (first, _) => Some(first.into()),
    }
}

/// Whether the instruction is left.
fn is_left<H: Host>(host: &H, block: &mut Block, word: u32) -> bool {
    let mut words = Vec::new();
    block.decode_plain(0, H::FOLLOWS, |off| {
        let word = if off == 0 { word } else { UDF };
        words.push((off as u16, word));
        word
    });
    let by_op: Vec<u32> = block
        .ops
        .iter()
        .map(|op| words.iter().find(|(off, _)| *off == op.off).map_or(UDF, |w| w.1))
        .collect();
    let insns: Vec<Insn> =
        block.ops.iter().zip(&by_op).map(|(op, word)| isa::decode(*word, op.off)).collect();
    let input = Input {
        ops: &block.ops,
        insns: &insns,
        words: &by_op,
        check: block.check,
        end: block.end,
        word_at: &|_| UDF,
    };
    let Code { left, .. } = host.translate(&input, 0);
    left.iter().any(|op| block.ops[*op].off == 0 && Some(*op) != block.check)
}

/// A line for each name of which some are left: the hosts that leave all, or some.
fn table(seen: &Seen) -> String {
    let mut out = String::new();
    for (name, hosts) in seen {
        let of = |(left, all): (usize, usize)| match left {
            0 => "translated",
            _ if left == all => "left",
            _ => "some left",
        };
        if hosts.iter().any(|(left, _)| *left != 0) {
            out += &format!("{name}: {} | {}\n", of(hosts[0]), of(hosts[1]));
        }
    }
    out
}

#[test]
fn what_is_left_to_handlers_is_what_the_list_says() {
    // No code is run.
    let entries = Entries { exit: 1, cold: 1, unknown: 1, call: 1, fp: 1, compiled: 1 };
    let x86 = X86::best(&entries);
    let (arm64, _) = Arm64::new(&entries).expect("a back end");
    let mut block = Block::default();
    let mut seen = Seen::new();
    for word in words() {
        let Some(name) = name(word) else { continue };
        let system = name == "mrs" || name == "msr";
        let hosts = seen.entry(name).or_default();
        // Of system registers few are translated.
        if hosts[0].1 >= MOST && !system {
            continue;
        }
        let left = [is_left(&x86, &mut block, word), is_left(&arm64, &mut block, word)];
        for (host, left) in hosts.iter_mut().zip(left) {
            host.0 += usize::from(left);
            host.1 += 1;
        }
    }
    let found = table(&seen);
    let expected = include_str!("left.txt");
    let (_, expected) = expected.split_once("\n\n").expect("words above the list");
    assert!(found == expected, "what is left has changed; it is now:\n{found}");
}
