//! A machine in a version 8 snapshot, the format in the field: fixed records of Hypervisor.framework's registers.
//!
//! What the format has no room for: PSCI's power states (only a machine all of whose vCPUs are on can be written, and
//! all are on when it is read), the devices' types (they are by place: vsock, disks, then what a machine of this
//! project has beyond them), and the features of the CPU.

use std::fs::File;

use supermachine_devices::persist::{DeviceState, QueueState, TransportState};
use supermachine_engine::Engine;
use supermachine_engine::arm64::state::VcpuState;
use supermachine_engine::arm64::{IccReg, RedistReg, Reg, SimdReg, SysReg};
use supermachine_snapshot::layout::{Layout, in_v8};
use supermachine_snapshot::v8;
use supermachine_support::lock;

use crate::architecture::Architecture;
use crate::arm64::{Common, layout as map};
use crate::assembly::Disk;
use crate::assembly::layout_of;
use crate::bus::SharedDevice;
use crate::machine::{Ground, Parts};
use crate::memory::Backing;
use crate::pause::Paused;
use crate::power::Power;
use crate::state::{State, decode, encode, refused};
use crate::{Error, Machine};

/// A version 8 file, checked and ready for [`restore`].
pub struct Opened {
    /// Of the guest's RAM.
    pub memory_bytes: u64,
    backing: Backing,
    snapshot: v8::Snapshot,
}

impl Opened {
    /// The ports on which the guest listened.
    pub fn listeners(&self) -> &[v8::Listener] {
        &self.snapshot.listeners
    }
}

/// Opens and checks a file.
pub fn open(file: File) -> Result<Opened, Error> {
    let (snapshot, offset) = v8::Snapshot::read_with_ram_offset(&file).map_err(Error::Snapshot)?;
    if snapshot.ram_gpa != map::RAM_BASE {
        let ram = snapshot.ram_gpa;
        return Err(refused(
            "header",
            format!("its RAM is at {ram:#x}, and this machine's at {:#x}", map::RAM_BASE),
        ));
    }
    let memory_bytes = snapshot.memory_bytes;
    Ok(Opened {
        memory_bytes,
        backing: Backing { base: file, offset, diffs: Vec::new(), arrival: None, noted: None },
        snapshot,
    })
}

/// As [`Machine::restore`].
pub fn restore(
    engine: Engine,
    opened: Opened,
    disks: Vec<Disk>,
    generation: [u8; 16],
    mut step: impl FnMut(&str),
) -> Result<Machine, Error> {
    let architecture = Architecture::of(engine);
    if architecture != Architecture::Arm64 {
        let guests = architecture.map().architecture;
        return Err(refused(
            "header",
            format!("its guest is aarch64, and the {engine} engine's are {guests} here"),
        ));
    }
    let Opened { memory_bytes, backing, snapshot } = opened;
    let layout = layout(&snapshot, disks.len())?;
    let ground = Ground::laid(engine, snapshot.vcpus.len(), memory_bytes, backing, None, &mut step)?;
    let parts = Parts::on(ground, layout, disks)?;
    let state = state(&snapshot, &parts.devices.in_bus_order)?;
    parts.finish_restore(&state, &[], generation, &mut step)
}

/// Writes a machine that stands still into `file`, which is empty; it need not stand still to finish it. `listeners`
/// are those of the file that it was restored from.
pub fn write(paused: &Paused, listeners: &[v8::Listener], file: &File) -> Result<v8::Unfinished, Error> {
    let engine = paused.engine();
    let architecture = Architecture::of(engine);
    if architecture != Architecture::Arm64 {
        let guests = architecture.map().architecture;
        let reason = format!(
            "version 8 is for arm64 guests, and the {engine} engine's are {guests} here; take a snapshot of version 9"
        );
        return Err(refused("format", reason));
    }
    let state = paused.state()?;
    let ram = paused.ram();
    let listeners = listeners.to_vec();
    let snapshot = v8::Snapshot { listeners, ..snapshot(&state, ram.len() as u64)? };
    snapshot.begin(file, ram).map_err(Error::Snapshot)
}

fn snapshot(state: &State, memory_bytes: u64) -> Result<v8::Snapshot, Error> {
    let common: Common = decode("the machine's state", &state.machine)?;
    if let Some(vcpu) = common.power.iter().position(|power| *power != Power::On) {
        let reason = "it is off, which version 8 cannot say; take a snapshot of version 9";
        return Err(refused(format!("vCPU {vcpu}"), reason));
    }
    let vcpus: Vec<_> = state
        .vcpus
        .iter()
        .map(|bytes| Ok(record(&VcpuState::decode(bytes)?)))
        .collect::<Result<_, Error>>()?;
    let devices = state.devices.iter().map(|bytes| {
        let DeviceState { transport, .. } = decode("a device's state", bytes)?;
        Ok(device(&transport))
    });
    let devices = devices.collect::<Result<_, Error>>()?;
    Ok(v8::Snapshot {
        captured_mach_time: common
            .cntvct
            .wrapping_add(vcpus.first().map_or(0, |vcpu: &v8::Vcpu| vcpu.vtimer_offset)),
        captured_cntvct: common.cntvct,
        gic_blob: state.interrupt_controller.clone(),
        vcpus,
        devices,
        listeners: Vec::new(),
        memory_bytes,
        ram_gpa: map::RAM_BASE,
    })
}

/// The layout of the machine that a file is restored to: its writer's, or the first for those that are not this
/// project's, where all that they do not have comes last.
fn layout(snapshot: &v8::Snapshot, disks: usize) -> Result<Layout, Error> {
    match snapshot.devices.len() {
        devices if devices == in_v8(disks) => Ok(Layout::First),
        devices => layout_of(devices, disks),
    }
}

/// The state that [`restore`] takes over, for a machine of its [`layout`] with these devices.
fn state(snapshot: &v8::Snapshot, made: &[SharedDevice]) -> Result<State, Error> {
    let common = Common { cntvct: snapshot.captured_cntvct, power: vec![Power::On; snapshot.vcpus.len()] };
    let vcpus = snapshot.vcpus.iter().map(|vcpu| Ok(vcpu_state(vcpu)?.encode()?));
    let devices = made.iter().enumerate().map(|(n, device)| {
        // What a device is comes from the machine, what its driver has made of it from the file.
        let mut state = lock(device).save();
        if let Some(saved) = snapshot.devices.get(n) {
            state.transport = transport(saved);
        }
        encode("a device's state", &state)
    });
    Ok(State {
        machine: encode("the machine's state", &common)?,
        interrupt_controller: snapshot.gic_blob.clone(),
        vcpus: vcpus.collect::<Result<_, Error>>()?,
        devices: devices.collect::<Result<_, _>>()?,
        backends: Vec::new(),
    })
}

/// A vCPU's registers as a record.
pub fn record(state: &VcpuState) -> v8::Vcpu {
    v8::Vcpu {
        vtimer_offset: state.vtimer_offset,
        gp: state.general.iter().map(|(Reg(id), value)| (*id, *value)).collect(),
        simd: state.simd.iter().map(|(SimdReg(id), value)| (*id, *value)).collect(),
        // The format has no place for what the debug unit compares with: debugging ends with its files.
        sys: state
            .system
            .iter()
            .filter(|(id, _)| SysReg::SNAPSHOT.contains(id))
            .map(|(SysReg(id), value)| (u32::from(*id), *value))
            .collect(),
        icc: state.icc.iter().map(|(IccReg(id), value)| (u32::from(*id), *value)).collect(),
        redist: state.redistributor.iter().map(|(RedistReg(id), value)| (*id, *value)).collect(),
    }
}

/// A record's registers, checked: ids that no engine has, that are there twice or not at all are named.
pub fn vcpu_state(vcpu: &v8::Vcpu) -> Result<VcpuState, Error> {
    let short =
        |id: u32| u16::try_from(id).map_err(|_| refused("vCPU record", format!("it has a register {id:#x}")));
    let state = VcpuState {
        vtimer_offset: vcpu.vtimer_offset,
        general: vcpu.gp.iter().map(|(id, value)| (Reg(*id), *value)).collect(),
        simd: vcpu.simd.iter().map(|(id, value)| (SimdReg(*id), *value)).collect(),
        system: vcpu
            .sys
            .iter()
            .map(|(id, value)| Ok((SysReg(short(*id)?), *value)))
            .collect::<Result<_, Error>>()?,
        icc: vcpu
            .icc
            .iter()
            .map(|(id, value)| Ok((IccReg(short(*id)?), *value)))
            .collect::<Result<_, Error>>()?,
        redistributor: vcpu.redist.iter().map(|(id, value)| (RedistReg(*id), *value)).collect(),
    };
    state.check().map_err(|e| refused("vCPU record", e))?;
    Ok(state)
}

fn device(state: &TransportState) -> v8::Device {
    let queue = |queue: &QueueState| {
        let QueueState { size, ready, desc, avail, used, last_avail_idx, next_used_idx } = *queue;
        v8::Queue { size, ready, desc, avail, used, last_avail_idx, next_used_idx }
    };
    #[expect(clippy::cast_possible_truncation, reason = "one half after the other")]
    let driver_features = [state.driver_features as u32, (state.driver_features >> 32) as u32];
    v8::Device {
        driver_features,
        status: state.status,
        interrupt_status: state.interrupt_status,
        queues: state.queues.iter().map(queue).collect(),
    }
}

fn transport(device: &v8::Device) -> TransportState {
    let queue = |queue: &v8::Queue| {
        let v8::Queue { size, ready, desc, avail, used, last_avail_idx, next_used_idx } = *queue;
        QueueState { size, ready, desc, avail, used, last_avail_idx, next_used_idx }
    };
    let [low, high] = device.driver_features;
    TransportState {
        driver_features: u64::from(low) | u64::from(high) << 32,
        status: device.status,
        interrupt_status: device.interrupt_status,
        queues: device.queues.iter().map(queue).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use supermachine_devices::Transport;
    use supermachine_devices::rng::Rng;
    use supermachine_engine::arm64::VmConfig;
    use supermachine_engine::create_arm64_vm;

    use super::*;

    /// A vCPU as it is made, with its own values in a few places.
    fn saved() -> VcpuState {
        let (gicd_base, gicr_base) = (map::GICD_BASE, map::GICR_BASE);
        let vm = create_arm64_vm(Engine::Soft, VmConfig { vcpus: 1, gicd_base, gicr_base }).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_vtimer_offset(99).unwrap();
        vcpu.set_reg(Reg::LR, 7).unwrap();
        vcpu.set_simd_reg(SimdReg(31), u128::MAX - 1).unwrap();
        vcpu.set_sys_reg(SysReg::APGAKEYHI_EL1, 5).unwrap();
        VcpuState::capture(&*vcpu).unwrap()
    }

    #[test]
    fn registers_are_the_same_there_and_back() {
        let state = saved();
        let record = record(&state);
        assert_eq!(record.vtimer_offset, 99);
        let table = v8::registers::Class::Redistributor.table();
        assert_eq!(
            record.redist.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            table.iter().map(|register| register.id).collect::<Vec<_>>()
        );
        assert_eq!(vcpu_state(&record).unwrap(), state);
    }

    #[test]
    fn devices_are_by_place_and_those_beyond_the_format_may_be_left_out() {
        let memory = crate::memory::Memory::new(&crate::arm64::layout::MAP, 64 << 20).unwrap();
        let device = || -> SharedDevice {
            let line: supermachine_devices::IrqLine = Arc::new(|_| {});
            Arc::new(Mutex::new(Transport::new(Rng, memory.for_devices(), line)))
        };
        let made: Vec<_> = (0..4).map(|_| device()).collect();
        let saved = |devices: usize| v8::Snapshot {
            captured_cntvct: 5,
            vcpus: vec![record(&saved())],
            devices: vec![
                v8::Device { driver_features: [1, 2], status: 3, ..v8::Device::default() };
                devices
            ],
            ..v8::Snapshot::default()
        };
        for (devices, given) in [(4, [3; 4]), (2, [3, 3, 0, 0])] {
            let state = state(&saved(devices), &made).unwrap();
            let statuses = state.devices.iter().map(|bytes| {
                let device: DeviceState = decode("", bytes).unwrap();
                assert_eq!(device.id, 4);
                device.transport.status
            });
            assert_eq!(statuses.collect::<Vec<_>>(), given);
            let common: Common = decode("", &state.machine).unwrap();
            assert_eq!((common.cntvct, common.power), (5, vec![Power::On]));
        }
        for (devices, layout) in [(3, Layout::First), (5, Layout::First), (12, Layout::Second)] {
            assert_eq!(super::layout(&saved(devices), 2).unwrap(), layout);
        }
        for devices in [0, 1, 2, 4, 6] {
            let error = super::layout(&saved(devices), 2).unwrap_err().to_string();
            assert!(error.contains(&format!("{devices} devices")), "{error}");
        }
    }

    #[test]
    fn ids_out_of_range_are_named() {
        let mut bad = record(&saved());
        bad.sys[3].0 = 0x1_c080;
        assert!(vcpu_state(&bad).unwrap_err().to_string().contains("0x1c080"));
        let mut bad = record(&saved());
        bad.gp.pop();
        assert!(vcpu_state(&bad).unwrap_err().to_string().contains("Reg(33)"));
        let mut bad = record(&saved());
        bad.icc[0].0 = 0xffff;
        assert!(vcpu_state(&bad).unwrap_err().to_string().contains("IccReg(65535)"));
    }

    #[test]
    fn a_vcpu_that_is_off_cannot_be_written() {
        let state = State {
            machine: encode("", &Common { cntvct: 0, power: vec![Power::On, Power::Off] }).unwrap(),
            interrupt_controller: vec![],
            vcpus: vec![],
            devices: vec![],
            backends: vec![],
        };
        let error = snapshot(&state, 64 << 20).unwrap_err().to_string();
        assert!(error.contains("vCPU 1") && error.contains("version 9"), "{error}");
    }
}
