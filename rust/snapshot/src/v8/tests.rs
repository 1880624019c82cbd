//! Round trips, and files that were damaged or made to mislead.

use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;

use super::*;
use crate::ram::PAGE;
use crate::testing::{bytes_of, file_of, nameless};
use crate::{Error, Result};

/// Every register with a value of its own.
fn vcpu(number: u64) -> Vcpu {
    Vcpu::with(number, |class, id| Some(u128::from(id) << 64 | u128::from(id) << 8 | class as u128))
}

fn snapshot() -> Snapshot {
    let queue = Queue {
        size: 16,
        ready: true,
        desc: 0x4000_0000,
        avail: 0x4000_1000,
        used: 0x4000_1800,
        last_avail_idx: 3,
        next_used_idx: 0xfff8,
    };
    Snapshot {
        captured_mach_time: 1000,
        captured_cntvct: 1000,
        gic_blob: vec![7; 100],
        vcpus: vec![vcpu(0), vcpu(1)],
        devices: vec![
            Device { driver_features: [1, 2], status: 15, interrupt_status: 1, queues: vec![queue; 3] },
            Device { queues: vec![Queue { size: 3, ..Queue::default() }], ..Device::default() },
        ],
        listeners: vec![Listener { cid: 3, peer_port: 1, vm_port: 8080, family: 40, socktype: 1 }],
        memory_bytes: 3 * HOLE as u64 + PAGE as u64,
        ram_gpa: 0x4000_0000,
    }
}

fn ram() -> Vec<u8> {
    let mut ram = vec![0; snapshot().memory_bytes as usize];
    ram[HOLE + 5] = 1;
    ram
}

fn written(snapshot: &Snapshot, ram: &[u8]) -> Vec<u8> {
    let file = nameless();
    snapshot.write(&file, ram).unwrap();
    bytes_of(&file)
}

fn read(bytes: &[u8]) -> Result<Snapshot> {
    Snapshot::read(&file_of(bytes))
}

#[test]
fn a_file_is_laid_out_as_documented() {
    let file = nameless();
    snapshot().write(&file, &ram()).unwrap();
    let bytes = bytes_of(&file);
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let vcpu_bytes = 28 + 12 * (37 + 37 + 10 + 13) + 20 * 32;
    let end: usize = 72 + 100 + 2 * vcpu_bytes + 4 + 20 + 3 * 32 + 20 + 32 + 4 + 20;
    let ram_offset = end.next_multiple_of(16 << 10);
    assert_eq!(&bytes[..8], b"SMSNAP\x08\0");
    assert_eq!([8, 16, 24, 32, 40].map(word), [8, 1000, 1000, snapshot().memory_bytes, 100]);
    assert_eq!([48, 56, 64].map(word), [2, 0x4000_0000, ram_offset as u64]);
    assert_eq!(bytes[end - 20..end], [3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x90, 0x1f, 0, 0, 40, 0, 1, 0]);
    assert!(bytes[end..ram_offset].iter().all(|byte| *byte == 0));
    assert!(bytes[ram_offset..] == ram());
    assert!(file.metadata().unwrap().blocks() * 512 < snapshot().memory_bytes);
    assert_eq!(Snapshot::read_with_ram_offset(&file).unwrap(), (snapshot(), ram_offset as u64));
}

#[test]
fn ram_in_stretches_makes_the_same_file() {
    let file = nameless();
    snapshot().write_with(&file, [Ok((HOLE as u64, &ram()[HOLE..HOLE + 9]))]).unwrap();
    assert!(bytes_of(&file) == written(&snapshot(), &ram()));
    let past = snapshot().memory_bytes - 4096;
    for wrong in [(1, &[1; 8][..]), (past, &[1; 4097]), (u64::MAX - 0xffff, &[1; 9])] {
        assert!(snapshot().write_with(&nameless(), [Ok(wrong)]).is_err());
    }
}

#[test]
fn without_its_header_a_file_is_no_snapshot() {
    let mut bytes = written(&snapshot(), &ram());
    bytes[..HEADER_BYTES].fill(0);
    assert!(matches!(read(&bytes), Err(Error::Magic { .. })));
}

/// What is wrong with a vCPU record is refused by reader and writer alike, and both name the register.
#[test]
fn registers_that_are_unknown_doubled_or_missing_are_named() {
    let wrong = |change: &dyn Fn(&mut Vcpu), name: &str| {
        let mut bad = snapshot();
        change(&mut bad.vcpus[1]);
        let error = bad.write(&nameless(), &ram()).unwrap_err();
        assert!(matches!(error, Error::Unwritable { .. }));
        assert!(error.to_string().contains("vCPU 1") && error.to_string().contains(name), "{error}");

        // The same record, forged.
        let mut forged = vec![];
        let vcpu = &bad.vcpus[1];
        forged.extend(1_u64.to_le_bytes());
        for count in [vcpu.gp.len(), vcpu.simd.len(), vcpu.sys.len(), vcpu.icc.len(), vcpu.redist.len()] {
            put(&mut forged, count as u32);
        }
        let put_all = |out: &mut Vec<u8>, list: &[(u32, u64)]| {
            for (id, value) in list {
                put(out, *id);
                out.extend(value.to_le_bytes());
            }
        };
        put_all(&mut forged, &vcpu.gp);
        for (id, value) in &vcpu.simd {
            put(&mut forged, *id);
            forged.extend(value.to_le_bytes());
        }
        [&vcpu.sys, &vcpu.icc, &vcpu.redist].into_iter().for_each(|list| put_all(&mut forged, list));
        let good = written(&snapshot(), &ram());
        let record = 28 + 12 * (37 + 37 + 10 + 13) + 20 * 32;
        let start = 72 + 100 + record;
        let mut bytes = [&good[..start], &forged, &good[start + record..]].concat();
        // The padding makes up for another length, so RAM stays where it was.
        let longer = forged.len() as i64 - record as i64;
        let padding = bytes.len() - snapshot().memory_bytes as usize - 1;
        if longer > 0 {
            bytes.drain(padding - longer as usize..padding);
        } else {
            bytes.splice(padding..padding, vec![0; -longer as usize]);
        }
        let error = read(&bytes).unwrap_err();
        assert!(matches!(error, Error::Register { vcpu: 1, .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    };
    fn drop<V>(list: &mut Vec<(u32, V)>, id: u32) {
        list.retain(|(other, _)| *other != id);
    }
    wrong(&|v| drop(&mut v.gp, 31), "PC");
    wrong(&|v| drop(&mut v.gp, 29), "X29");
    wrong(&|v| drop(&mut v.simd, 31), "Q31");
    for (id, name) in [
        (0xc080, "SCTLR_EL1"),
        (0xc102, "TCR_EL1"),
        (0xc100, "TTBR0_EL1"),
        (0xc101, "TTBR1_EL1"),
        (0xc510, "MAIR_EL1"),
        (0xc600, "VBAR_EL1"),
    ] {
        wrong(&|v| drop(&mut v.sys, id), name);
    }
    for register in &registers::REDISTRIBUTOR {
        wrong(&|v| drop(&mut v.redist, register.id), register.name);
    }
    wrong(&|v| v.gp[3].0 = 35, "0x23");
    wrong(&|v| v.gp[3].0 = 4, "X4");
    wrong(&|v| v.gp[31].1 ^= 1, "X29");
    wrong(&|v| v.gp[5].0 = 29, "X29");
    wrong(&|v| v.simd[0].0 = 32, "0x20");
    wrong(&|v| v.simd[0].0 = 1, "Q1");
    wrong(&|v| v.sys[9].0 = 0xffff_ffff, "0xffffffff");
    wrong(&|v| v.sys[9].0 = v.sys[10].0, "TPIDR_EL1");
    wrong(&|v| v.icc[0].0 = v.icc[1].0, "ICC_BPR0_EL1");
    wrong(&|v| v.icc[0] = v.icc[1], "ICC_BPR0_EL1 (0xc643) is there more often");
    wrong(&|v| v.sys[9] = v.sys[10], "TPIDR_EL1 (0xc684) is there more often");
    wrong(&|v| v.redist[0].0 = 0x10180, "0x10180");
    wrong(&|v| v.redist.push((0x10080, 0)), "");
}

fn put(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

#[test]
fn registers_that_a_writer_could_not_read_may_be_left_out() {
    let mut some = snapshot();
    let must = [0xc080, 0xc102, 0xc100, 0xc101, 0xc510, 0xc600];
    some.vcpus[0].sys.retain(|(id, _)| must.contains(id));
    some.vcpus[0].icc.clear();
    assert_eq!(read(&written(&some, &ram())).unwrap(), some);
}

#[test]
fn files_made_to_mislead_are_refused() {
    let good = written(&snapshot(), &ram());
    read(&good).unwrap();
    let devices = 72 + 100 + 2 * (28 + 12 * (37 + 37 + 10 + 13) + 20 * 32);
    let refused = |at: usize, value: &[u8], reason: &str| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        let error = read(&bytes).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    };
    let huge = u64::MAX.to_le_bytes();
    refused(0, b"SMSNAP\x09", "not a version 8 snapshot");
    refused(8, &[9], "version 9");
    refused(32, &huge, "not whole 4 KiB pages");
    refused(32, &(1_u64 << 40).to_le_bytes(), "cut off");
    refused(32, &4096_u64.to_le_bytes(), "follow its end");
    refused(32, &0_u64.to_le_bytes(), "not whole 4 KiB pages");
    refused(40, &huge, "interrupt controller");
    refused(40, &101_u64.to_le_bytes(), "vCPU 0");
    refused(48, &[0; 4], "no vCPU");
    refused(48, &[0xff; 4], "vCPU 2");
    refused(52, &[1], "reserved");
    refused(56, &1_u64.to_le_bytes(), "not whole 4 KiB pages");
    refused(56, &(u64::MAX - 0xfff).to_le_bytes(), "address space");
    refused(64, &huge, "multiple of 16 KiB");
    refused(64, &0_u64.to_le_bytes(), "multiple of 16 KiB");
    refused(64, &(1_u64 << 40).to_le_bytes(), "at most");
    refused(64, &(32_u64 << 10).to_le_bytes(), "cut off");
    refused(72 + 100 + 8, &[0xff; 4], "4294967295 general registers");
    refused(devices, &[0xff; 4], "device 2, queue 0");
    refused(devices + 20, &[0xff; 4], "the devices");
    let queue = devices + 24;
    refused(queue, &[3, 0], "power of two");
    refused(queue + 2, &[2], "0 or 1");
    refused(queue + 3, &[1], "reserved");
    refused(queue + 4, &[1], "descriptor table");
    refused(queue + 4, &huge, "descriptor table");
    refused(queue + 12, &0_u64.to_le_bytes(), "available ring");
    refused(queue + 20, &(0x4000_0000 + snapshot().memory_bytes - 8).to_le_bytes(), "used ring");
    refused(queue + 28, &[0xff, 0], "in flight");
    refused(devices + 24 + 96 + 20 + 32, &[0xff; 4], "the listeners");
    refused(devices + 24 + 96 + 20 + 32 + 4 + 20, &[1], "the space before RAM");

    let mut wide = good.clone();
    wide.splice(16000..16000, vec![0; 16 << 10]);
    wide[64..72].copy_from_slice(&(32_u64 << 10).to_le_bytes());
    let error = read(&wide).unwrap_err().to_string();
    assert!(error.contains("next multiple"), "{error}");
}

/// The format has no checksums: what is not noticed is read for what it is.
#[test]
fn every_flipped_byte_is_noticed_or_read_for_what_it_is() {
    let mut small = snapshot();
    small.memory_bytes = 8 << 10;
    small.vcpus.truncate(1);
    let good = written(&small, &vec![0; 8 << 10]);
    let file = file_of(&good);
    for at in 0..good.len() - PAGE {
        for flip in [1, 0x80, 0xff] {
            file.write_all_at(&[good[at] ^ flip], at as u64).unwrap();
            if let Ok((found, ram_offset)) = Snapshot::read_with_ram_offset(&file) {
                let mut bytes = good[..ram_offset as usize].to_vec();
                if at < bytes.len() {
                    bytes[at] ^= flip;
                }
                assert!(found.metadata().unwrap() == bytes, "byte {at}");
            }
        }
        file.write_all_at(&[good[at]], at as u64).unwrap();
    }
}

#[test]
fn every_cut_and_every_addition_is_noticed() {
    let mut good = written(&snapshot(), &ram());
    let file = file_of(&good);
    good.push(0);
    let ends = (0..9000).chain((9000..good.len() - 1).step_by(97));
    for length in ends.rev().chain([good.len()]) {
        if length == good.len() {
            file.write_all_at(&good, 0).unwrap();
        }
        file.set_len(length as u64).unwrap();
        let error = Snapshot::read(&file).unwrap_err();
        let expected = if length == good.len() { "follow its end" } else { "cut off" };
        assert!(error.to_string().contains(expected), "{length}: {error}");
    }
}

fn any_registers<V: std::fmt::Debug>(
    class: Class,
    value: impl Fn(&u64) -> V + Clone,
) -> impl Strategy<Value = Vec<(u32, V)>> {
    let table = class.table();
    (prop::collection::vec(any::<u64>(), table.len()), prop::collection::vec(any::<bool>(), table.len()))
        .prop_map(move |(values, kept)| {
            let with = |(n, r): (usize, &registers::Register)| {
                // FP and LR are X29 and X30, and have their values.
                let first = table.iter().position(|other| other.id == r.id).unwrap();
                (r.required || kept[n]).then(|| (r.id, value(&values[first])))
            };
            table.iter().enumerate().filter_map(with).collect()
        })
}

fn any_vcpu() -> impl Strategy<Value = Vcpu> {
    let wide = |value: &u64| u128::from(*value) << 64 | u128::from(value.rotate_left(9));
    (
        any::<u64>(),
        any_registers(Class::General, |v| *v).prop_shuffle(),
        any_registers(Class::Simd, wide).prop_shuffle(),
        any_registers(Class::System, |v| *v).prop_shuffle(),
        any_registers(Class::Icc, |v| *v).prop_shuffle(),
        any_registers(Class::Redistributor, |v| *v).prop_shuffle(),
    )
        .prop_map(|(vtimer_offset, gp, simd, sys, icc, redist)| Vcpu {
            vtimer_offset,
            gp,
            simd,
            sys,
            icc,
            redist,
        })
}

const RAM_GPA: u64 = 0x8000_0000;
const RAM_BYTES: u64 = 5 * HOLE as u64;

fn any_queue() -> impl Strategy<Value = Queue> {
    let ready = (0_u32..8, 0_u64..64, 0_u64..64, 0_u64..64, any::<u16>()).prop_flat_map(
        |(bits, desc, avail, used, next_used_idx)| {
            let size = 1_u16 << bits;
            (0..=size).prop_map(move |in_flight| Queue {
                size,
                ready: true,
                desc: RAM_GPA + desc * 16,
                avail: RAM_GPA + avail * 2,
                used: RAM_GPA + used * 4,
                last_avail_idx: next_used_idx.wrapping_add(in_flight),
                next_used_idx,
            })
        },
    );
    let unready = (any::<[u16; 3]>(), any::<[u64; 3]>()).prop_map(|(indices, addresses)| Queue {
        size: indices[0],
        ready: false,
        desc: addresses[0],
        avail: addresses[1],
        used: addresses[2],
        last_avail_idx: indices[1],
        next_used_idx: indices[2],
    });
    prop_oneof![ready, unready]
}

fn any_device() -> impl Strategy<Value = Device> {
    (any::<[u32; 4]>(), prop::collection::vec(any_queue(), 0..4)).prop_map(|(words, queues)| Device {
        driver_features: [words[0], words[1]],
        status: words[2],
        interrupt_status: words[3],
        queues,
    })
}

fn any_listener() -> impl Strategy<Value = Listener> {
    any::<(u64, u32, u32, u16, u16)>().prop_map(|(cid, peer_port, vm_port, family, socktype)| Listener {
        cid,
        peer_port,
        vm_port,
        family,
        socktype,
    })
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    (
        any::<[u64; 2]>(),
        prop::collection::vec(any::<u8>(), 0..500),
        prop::collection::vec(any_vcpu(), 1..4),
        prop::collection::vec(any_device(), 0..4),
        prop::collection::vec(any_listener(), 0..4),
    )
        .prop_map(|(times, gic_blob, vcpus, devices, listeners)| Snapshot {
            captured_mach_time: times[0],
            captured_cntvct: times[1],
            gic_blob,
            vcpus,
            devices,
            listeners,
            memory_bytes: RAM_BYTES,
            ram_gpa: RAM_GPA,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_state_comes_back_and_makes_the_same_bytes(
        snapshot in any_snapshot(),
        bytes in prop::collection::vec((0..RAM_BYTES, any::<u8>()), 0..6),
    ) {
        let mut ram = vec![0; RAM_BYTES as usize];
        for (at, byte) in bytes {
            ram[at as usize] = byte;
        }
        let first = written(&snapshot, &ram);
        let file = file_of(&first);
        let (found, ram_offset) = Snapshot::read_with_ram_offset(&file).unwrap();
        prop_assert_eq!(&found, &snapshot);
        prop_assert!(first[ram_offset as usize..] == ram);
        prop_assert!(written(&found, &ram) == first);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        changes in prop::collection::vec((72..4500_usize, any::<u8>()), 1..40),
    ) {
        let mut bytes = written(&snapshot(), &ram());
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        let _ = read(&bytes);
    }
}
