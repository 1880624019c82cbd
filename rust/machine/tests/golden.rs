//! Snapshots that earlier versions of an engine wrote: their guests go on.
//!
//! A guest that counts in memory was captured by each version; its file must restore for ever. To add the file of a new
//! version, after which it does not change any more:
//! `cargo test -p supermachine-machine --features hvf-soft --test golden -- --ignored`

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use supermachine_engine::arm64::state::VcpuState;
use supermachine_engine::arm64::{Reg, SimdReg, SysReg};
use supermachine_machine::snapshot::{self, About, Scope};
use supermachine_machine::{Config, Engine, Machine, Restore};
use supermachine_snapshot::export;
use supermachine_snapshot::publish::Publication;

/// Guest physical address and bytes of RAM in every golden file.
const RAM_BASE: u64 = 0x4000_0000;
const MEMORY: u64 = 64 << 20;
/// Where the guest counts.
const COUNTER: usize = 16 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// An arm64 Image: marks some registers, then counts.
fn guest() -> Vec<u8> {
    let mut image = vec![0; 64];
    image[..4].copy_from_slice(&0x1400_0010_u32.to_le_bytes()); // b #64
    image[56..60].copy_from_slice(b"ARM\x64");
    let program: [u32; 11] = [
        0xd2a8_2001, // movz x1, #0x4100, lsl #16
        0xd282_4682, // movz x2, #0x1234
        0xd2a0_0604, // movz x4, #0x30, lsl #16
        0xd518_1044, // msr cpacr_el1, x4
        0xd503_3fdf, // isb
        0x4e08_0c43, // dup v3.2d, x2
        0xd51b_d042, // msr tpidr_el0, x2
        0xd280_0000, // movz x0, #0
        0x9100_0400, // add x0, x0, #1
        0xf900_0020, // str x0, [x1]
        0x17ff_fffe, // b to the addition
    ];
    image.extend(program.iter().flat_map(|word| word.to_le_bytes()));
    image[16..24].copy_from_slice(&4096_u64.to_le_bytes());
    image
}

/// The engines that can run here.
fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Soft];
    if cfg!(feature = "hvf-soft") {
        engines.push(Engine::Hvf);
    }
    engines
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The guest's count, which has gone beyond `after`, and its vCPU as it stands.
fn count_beyond(machine: &Machine, after: u64) -> (u64, VcpuState) {
    let end = Instant::now() + DEADLINE;
    loop {
        let paused = machine.pause().unwrap();
        let count = u64::from_le_bytes(paused.ram()[COUNTER..COUNTER + 8].try_into().unwrap());
        if count > after {
            return (count, VcpuState::decode(&paused.state().unwrap().vcpus[0]).unwrap());
        }
        assert!(Instant::now() < end, "the guest does not count: it is at {count}");
        drop(paused);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn check(state: &VcpuState, count: u64) {
    let general = |wanted: Reg| state.general.iter().find(|(reg, _)| *reg == wanted).unwrap().1;
    let system = |wanted: SysReg| state.system.iter().find(|(reg, _)| *reg == wanted).unwrap().1;
    // Between the addition and the store, the register is one ahead.
    assert!([count, count + 1].contains(&general(Reg::x(0))), "x0 {} and memory {count}", general(Reg::x(0)));
    assert_eq!(general(Reg::x(1)), RAM_BASE + COUNTER as u64);
    assert_eq!(general(Reg::x(2)), 0x1234);
    assert_eq!(system(SysReg::TPIDR_EL0), 0x1234);
    assert_eq!(system(SysReg::CPACR_EL1), 3 << 20);
    let vector = state.simd.iter().find(|(reg, _)| *reg == SimdReg(3)).unwrap().1;
    assert_eq!(vector, 0x1234 << 64 | 0x1234);
}

#[test]
fn the_guests_of_every_version_go_on() {
    let mut tried = 0;
    for entry in std::fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !engines().iter().any(|engine| name.starts_with(&format!("{engine}-"))) {
            continue;
        }
        let place = tempfile::tempdir().unwrap();
        let publication = Publication::begin(&place.path().join("snapshot")).unwrap();
        let packed = File::open(&path).unwrap();
        export::read(&packed, publication.file(), &mut |_| ControlFlow::Continue(())).unwrap();
        publication.commit(false).unwrap();

        let opened = snapshot::open(vec![File::open(place.path().join("snapshot")).unwrap()]).unwrap();
        let machine = Machine::restore(
            Restore {
                engine: opened.engine,
                memory_bytes: opened.memory_bytes,
                memory: opened.backing,
                state: opened.state,
                cpu_features: opened.cpu_features,
                disks: vec![],
                generation: [7; 16],
            },
            |_| {},
        )
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (count, state) = count_beyond(&machine, 0);
        check(&state, count);
        machine.start();
        let (later, state) = count_beyond(&machine, count);
        assert!(later > count);
        check(&state, later);
        tried += 1;
    }
    assert!(tried >= engines().len());
}

/// Not a test: see above.
#[test]
#[ignore = "makes files"]
fn make() {
    for engine in engines() {
        let machine = Machine::new(Config {
            engine,
            memory_bytes: MEMORY,
            vcpus: 1,
            kernel: guest(),
            initramfs: vec![],
            cmdline: String::new(),
            disks: vec![],
        })
        .unwrap();
        machine.start();
        count_beyond(&machine, 1000);
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("snapshot");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let paused = machine.pause().unwrap();
        let writer =
            snapshot::write(&paused, &file, About::default(), None, &Scope::of(None, false).unwrap())
                .unwrap();
        drop(paused);
        writer.finish().unwrap();
        let version = supermachine_snapshot::v9::Snapshot::open(&file).unwrap().identity().engine_version;
        let target = golden().join(format!("{engine}-{version}.zst"));
        if target.exists() {
            continue;
        }
        let publication = Publication::begin(&target).unwrap();
        export::write(&file, publication.file(), &mut |_| ControlFlow::Continue(())).unwrap();
        publication.commit(false).unwrap();
    }
}
