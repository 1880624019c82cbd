//! Snapshots that earlier versions of an engine wrote: they are read, and their guests go on.
//!
//! A guest that counts in memory was captured by each version; its file must restore for ever. A new version's files
//! are added by `python -m tests.kvm.golden`, and do not change any more afterwards.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod counting;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use counting::{COUNTER, HELD, SUMS};
use supermachine_engine::arm64::state::VcpuState;
use supermachine_engine::arm64::{Reg, SimdReg, SysReg};
use supermachine_machine::snapshot::v9::{self, About, Opened, Scope};
use supermachine_machine::{Config, Engine, Error, Ground, Machine, Restore, State};
use supermachine_snapshot::export;
use supermachine_snapshot::publish::Publication;
use supermachine_snapshot::v9::{Identity, Metadata, Snapshot, Writer};

const MEMORY: u64 = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// The engines that can run here.
fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Soft];
    if cfg!(feature = "hvf-soft") {
        engines.push(Engine::Hvf);
    }
    #[cfg(target_os = "linux")]
    match supermachine_engine::kvm::host::open() {
        Ok(_) => engines.push(Engine::Kvm),
        Err(reason) => eprintln!("SKIPPED for kvm: {reason}"),
    }
    engines
}

/// Where the files are: also where these tests run elsewhere than they were built.
fn golden() -> PathBuf {
    std::env::var_os("SUPERMACHINE_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

/// A file's name: engine, the guests' architecture where an engine has several, version.
fn name(identity: &Identity) -> String {
    match &*identity.engine {
        "kvm" => format!("kvm-{}-{}.zst", identity.architecture, identity.engine_version),
        engine => format!("{engine}-{}.zst", identity.engine_version),
    }
}

/// Each golden file, unpacked, with its name.
fn files() -> Vec<(String, File)> {
    let entries = std::fs::read_dir(golden()).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let place = tempfile::tempdir().unwrap();
            let publication = Publication::begin(&place.path().join("snapshot")).unwrap();
            let packed = File::open(&path).unwrap();
            export::read(&packed, publication.file(), &mut |_| ControlFlow::Continue(())).unwrap();
            publication.commit(false).unwrap();
            let unpacked = File::open(place.path().join("snapshot")).unwrap();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), unpacked)
        })
        .collect();
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    files
}

/// Of every engine, also of those that do not run here.
#[test]
fn every_section_is_read_and_written_again() {
    let files = files();
    for engine in ["hvf-", "kvm-x86_64-", "kvm-aarch64-", "soft-"] {
        assert!(files.iter().any(|(name, _)| name.starts_with(engine)), "there is no file of {engine}");
    }
    for (file_name, file) in &files {
        let read = Snapshot::open(file).unwrap();
        let metadata = Metadata { identity: read.identity().clone(), sections: read.sections().to_vec() };
        let identity = &metadata.identity;
        assert_eq!(name(identity), *file_name);
        assert_eq!((identity.memory_bytes, identity.vcpus, &identity.parent), (MEMORY, 1, &None));
        assert_eq!(identity.devices, ["vsock", "console", "rng"]);
        assert!(!identity.cpu_features.is_empty(), "{file_name}");
        let again = tempfile::tempfile().unwrap();
        let mut writer = Writer::begin(&again, &metadata).unwrap();
        writer.write_ram(&vec![0; MEMORY as usize]).unwrap();
        writer.finish().unwrap();
        let again = Snapshot::open(&again).unwrap();
        assert_eq!((again.identity(), again.sections()), (identity, read.sections()), "{file_name}");
    }
}

/// Whether a file is of KVM's guests on another architecture than this host's.
fn is_elsewhere(name: &str) -> bool {
    name.starts_with("kvm-") && !name.contains(std::env::consts::ARCH)
}

#[cfg(target_os = "linux")]
#[test]
fn the_guests_of_another_architecture_are_named() {
    let mut refused = 0;
    for (name, file) in files().into_iter().filter(|(name, _)| is_elsewhere(name)) {
        let Err(error) = v9::open(vec![file], vec![]) else { panic!("{name} was opened") };
        let text = error.to_string();
        assert!(text.contains("x86_64") && text.contains("aarch64"), "{text}");
        refused += 1;
    }
    assert!(refused > 0);
}

/// The guest's count, which has gone beyond `after`, what is behind it in memory, and the machine's state.
fn count_beyond(machine: &Machine, after: u64) -> (u64, [u64; SUMS], State) {
    let end = Instant::now() + DEADLINE;
    loop {
        let paused = machine.pause().unwrap();
        let word = |n: usize| {
            let at = COUNTER + 8 * n;
            u64::from_le_bytes(paused.ram()[at..at + 8].try_into().unwrap())
        };
        if word(0) > after {
            return (word(0), std::array::from_fn(|n| word(1 + n)), paused.state().unwrap());
        }
        assert!(Instant::now() < end, "the guest does not count: it is at {}", word(0));
        drop(paused);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the registers of an engine hold whose state is the same on every host.
fn check_registers(state: &State, count: u64) {
    let state = VcpuState::decode(&state.vcpus[0]).unwrap();
    let general = |wanted: Reg| state.general.iter().find(|(reg, _)| *reg == wanted).unwrap().1;
    let system = |wanted: SysReg| state.system.iter().find(|(reg, _)| *reg == wanted).unwrap().1;
    // Between the addition and the store, the register is one ahead.
    assert!([count, count + 1].contains(&general(Reg::x(0))), "x0 {} and memory {count}", general(Reg::x(0)));
    assert_eq!(general(Reg::x(1)), 0x4000_0000 + COUNTER as u64);
    assert_eq!(general(Reg::x(2)), HELD);
    assert_eq!(system(SysReg::TPIDR_EL0), HELD);
    assert_eq!(system(SysReg::CPACR_EL1), 3 << 20);
    let vector = state.simd.iter().find(|(reg, _)| *reg == SimdReg(3)).unwrap().1;
    assert_eq!(vector, u128::from(HELD) << 64 | u128::from(HELD));
}

/// Has the guest's counter of time run at the pace of this host's, as if the snapshot were of a host with the same: an
/// emulated host's is that of the machine that emulates it, and is not scaled.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn adapt(state: &mut State) {
    use supermachine_engine::kvm::x86_64::{CpuModel, Vm};

    let (model, rest) = postcard::take_from_bytes::<Vec<u8>>(&state.machine).unwrap();
    let mut model = CpuModel::decode(&model).unwrap();
    model.tsc_khz = Vm::new(1, None).unwrap().model().tsc_khz;
    state.machine = [&postcard::to_stdvec(&model.encode().unwrap()).unwrap(), rest].concat();
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn adapt(_: &mut State) {}

/// The machine of a snapshot; `None`, with the reason, where this host's CPU is another one.
fn restored(name: &str, opened: Opened) -> Option<Machine> {
    let engine = opened.engine;
    let Opened { memory_bytes, backing, state, cpu_features, .. } = opened;
    let ground = Ground::new(engine, memory_bytes, backing, &state, &mut |_| {});
    let restored = ground.and_then(|ground| {
        Machine::restore(Restore { ground, state, cpu_features, disks: vec![], generation: [7; 16] }, |_| {})
    });
    match restored {
        Ok(machine) => Some(machine),
        Err(error) if engine == Engine::Kvm && is_of_the_cpu(&error) => {
            eprintln!("SKIPPED {name}: {error}");
            None
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

/// Whether an error says that the snapshot was taken on another CPU.
#[cfg(target_os = "linux")]
fn is_of_the_cpu(error: &Error) -> bool {
    use supermachine_engine::kvm::Error as Kvm;

    match error {
        Error::CpuFeatures { .. } => true,
        Error::Engine(supermachine_engine::Error::Kvm(error)) => {
            matches!(error, Kvm::Vendor { .. } | Kvm::Features(_) | Kvm::Register { .. })
        }
        // A vCPU's own refusal, told as one of the snapshot's parts.
        Error::State { reason, .. } => reason.contains("on this CPU"),
        _ => false,
    }
}

#[cfg(not(target_os = "linux"))]
fn is_of_the_cpu(_: &Error) -> bool {
    false
}

#[test]
fn the_guests_of_every_version_go_on() {
    let engines = engines();
    let mut went_on = Vec::new();
    for (name, file) in files() {
        let engine = Engine::from_name(name.split('-').next().unwrap()).unwrap();
        if is_elsewhere(&name) || !engines.contains(&engine) {
            continue;
        }
        let mut opened = v9::open(vec![file], vec![]).unwrap();
        if engine == Engine::Kvm {
            adapt(&mut opened.state);
        }
        let saved = opened.state.clone();
        let Some(machine) = restored(&name, opened) else { continue };
        let (count, _, state) = count_beyond(&machine, 0);
        assert_eq!(state.machine.len(), saved.machine.len(), "{name}");
        assert_eq!(state.devices, saved.devices, "{name}");
        if engine == Engine::Kvm {
            // Of a vCPU only the time has gone on, which is at the end.
            let same = state.vcpus[0].iter().zip(&saved.vcpus[0]).take_while(|(a, b)| a == b).count();
            let (before, after) = (&saved.vcpus[0][same..], &state.vcpus[0][same..]);
            assert!(before.len() <= 24, "{name}: from byte {same} {before:x?} became {after:x?}");
        } else {
            check_registers(&state, count);
        }
        machine.start();
        // Beyond whatever it was at when it was captured, and what was begun then.
        let (later, sums, state) = count_beyond(&machine, count + 1);
        if engine == Engine::Kvm {
            let expected = [later + HELD, later + 1 + HELD];
            assert!(sums.iter().all(|sum| expected.contains(sum)), "{name}: {sums:x?} at {later:#x}");
        } else {
            check_registers(&state, later);
        }
        went_on.push(name);
    }
    println!("went on: {}", went_on.join(", "));
    assert!(went_on.len() >= engines.iter().filter(|engine| **engine != Engine::Kvm).count());
}

/// Not a test: see above. The environment names the engine.
#[test]
#[ignore = "makes files"]
fn make() {
    let wanted = std::env::var("SUPERMACHINE_GOLDEN_ENGINE").unwrap_or_default();
    for engine in engines().into_iter().filter(|engine| engine.to_string() == wanted) {
        let machine = Machine::new(Config {
            engine,
            memory_bytes: MEMORY,
            vcpus: 1,
            kernel: counting::kernel(engine),
            initramfs: vec![],
            cmdline: String::new(),
            disks: vec![],
        })
        .unwrap();
        machine.start();
        count_beyond(&machine, 1000);
        let file = tempfile::tempfile().unwrap();
        let paused = machine.pause().unwrap();
        let writer =
            v9::write(&paused, &file, About::default(), None, &Scope::of(None, false).unwrap(), None)
                .unwrap();
        drop(paused);
        writer.finish().unwrap();
        let target = golden().join(name(Snapshot::open(&file).unwrap().identity()));
        if target.exists() {
            continue;
        }
        let publication = Publication::begin(&target).unwrap();
        export::write(&file, publication.file(), &mut |_| ControlFlow::Continue(())).unwrap();
        publication.commit(false).unwrap();
    }
}
