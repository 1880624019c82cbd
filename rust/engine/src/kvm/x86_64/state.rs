//! What a snapshot holds of a vCPU, and the order in which it goes back. The structures are the kernel's own, whose
//! layout is its interface and only ever grows at the end.

use std::ops::RangeInclusive;

use kvm_bindings::{
    Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_sregs2, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::Cap;
use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use super::ioctl;
use super::vcpu::Vcpu;
use crate::kvm::{Error, Named, Result};

/// Version of the encoding of [`VcpuState`].
const VERSION: u32 = 1;

/// The time stamp counter, and the value of it at which the local APIC's timer fires (Intel SDM 4, table 2-2).
const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Memory types, which KVM keeps and does not list: variable and fixed ranges and the default.
const MTRRS: &[u32] = &[
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e,
    0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
];
/// Registers that a snapshot may hold.
const MOST_MSRS: usize = 1024;
/// Registers of Hyper-V's interface, which guests are not offered. KVM lists them all the same; some of them tell the
/// host's frequencies and the time, and would have a snapshot refused elsewhere for what no guest has seen.
const HYPER_V_MSRS: RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// Flags of kvm_sregs2, and the page directory pointers of PAE paging.
type Pdptrs = (u64, [u64; 4]);

#[derive(Serialize, Deserialize)]
struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// Where the kernel gives them.
    pdptrs: Option<Pdptrs>,
    debugregs: kvm_debugregs,
    xcrs: kvm_xcrs,
    /// The XSAVE area in 32-bit words.
    xsave: Vec<u32>,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    /// All model specific registers but the two of time.
    msrs: Vec<(u32, u64)>,
    tsc: u64,
    /// What KVM added to the host's counter to make `tsc`, where it says so.
    tsc_offset: Option<u64>,
    tsc_deadline: u64,
}

saved_structure!(VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    pdptrs: Option<Pdptrs>,
    debugregs: kvm_debugregs,
    xcrs: kvm_xcrs,
    xsave: Vec<u32>,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    msrs: Vec<(u32, u64)>,
    tsc: u64,
    tsc_offset: Option<u64>,
    tsc_deadline: u64
});

impl Vcpu {
    /// Everything that a snapshot holds of this vCPU, which is out of the guest by [`super::Exit::Canceled`] or has
    /// not been in it.
    pub fn save(&self) -> Result<Vec<u8>> {
        // First what asking for changes: a page fault that KVM has queued and not yet injected gives CR2 its address
        // when events are asked for (arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_vcpu_events; debug exceptions DR6
        // likewise), and INIT and SIPI that wait are taken when the state is.
        self.fd.get_vcpu_events().named("KVM_GET_VCPU_EVENTS")?;
        let mp_state = self.fd.get_mp_state().named("KVM_GET_MP_STATE")?;
        let regs = self.registers()?;
        let (sregs, pdptrs) = self.sregs()?;
        let tsc_offset = ioctl::tsc_offset(&self.fd);
        let tsc = self.msr(IA32_TSC)?;
        let state = VcpuState {
            mp_state,
            regs,
            sregs,
            pdptrs,
            debugregs: self.fd.get_debug_regs().named("KVM_GET_DEBUGREGS")?,
            xcrs: self.fd.get_xcrs().named("KVM_GET_XCRS")?,
            xsave: self.xsave()?,
            lapic: self.fd.get_lapic().named("KVM_GET_LAPIC")?,
            // Again: what was asked for in between may have changed them.
            events: self.fd.get_vcpu_events().named("KVM_GET_VCPU_EVENTS")?,
            msrs: self.msrs()?,
            tsc,
            tsc_offset,
            tsc_deadline: self.msr(IA32_TSC_DEADLINE).unwrap_or(0),
        };
        crate::kvm::encode(VERSION, &state)
    }

    /// Takes over what [`Vcpu::save`] gave, with memory in place. [`super::Vm::restore`] comes after all vCPUs.
    pub fn restore(&mut self, saved: &[u8]) -> Result<()> {
        let state: VcpuState = crate::kvm::decode(VERSION, saved)?;
        if state.msrs.len() > MOST_MSRS {
            return Err(Error::State(format!("{} model specific registers", state.msrs.len())));
        }
        self.fd.set_mp_state(state.mp_state).named("KVM_SET_MP_STATE")?;
        self.fd.set_regs(&state.regs).named("KVM_SET_REGS")?;
        // Segments, control registers and the base of the local APIC, before what depends on them.
        self.set_sregs(&state.sregs, state.pdptrs)?;
        // What may be enabled before what is.
        self.fd.set_xcrs(&state.xcrs).named("KVM_SET_XCRS")?;
        self.set_xsave(&state.xsave)?;
        self.fd.set_debug_regs(&state.debugregs).named("KVM_SET_DEBUGREGS")?;
        // The timer's mode, before its deadline.
        self.fd.set_lapic(&state.lapic).named("KVM_SET_LAPIC")?;
        // Files may still have them.
        let msrs = state.msrs.iter().filter(|(index, _)| !HYPER_V_MSRS.contains(index));
        self.set_msrs(&msrs.copied().collect::<Vec<_>>())?;
        let moved = self.set_tsc(&state)?;
        if state.tsc_deadline != 0 {
            // Zero would disarm the timer.
            let deadline = state.tsc_deadline.wrapping_add(moved).max(1);
            self.set_msrs(&[(IA32_TSC_DEADLINE, deadline)])?;
        }
        self.fd.set_vcpu_events(&state.events).named("KVM_SET_VCPU_EVENTS")?;
        // The guest's watchdogs are told that it was stopped; a guest without kvmclock has none to tell.
        let _ = self.fd.kvmclock_ctrl();
        Ok(())
    }

    /// Lets the counter go on from where it was, and says by how much it did not. All vCPUs get one and the same
    /// difference, so that their counters stay as far apart as they were, which is most often not at all.
    ///
    /// A host whose guests see its own counter takes the new value and does nothing. Linux takes its time from
    /// kvmclock, so only what was reckoned in the counter, the timer's deadline, has to move with it.
    fn set_tsc(&self, state: &VcpuState) -> Result<u64> {
        match (state.tsc_offset, ioctl::tsc_offset(&self.fd)) {
            (Some(offset), Some(now)) => {
                // The host's counter, scaled, then and now.
                let then = state.tsc.wrapping_sub(offset);
                let now = self.msr(IA32_TSC)?.wrapping_sub(now);
                let delta = *self.vm.tsc_delta.get_or_init(|| then.wrapping_sub(now));
                let wanted = offset.wrapping_add(delta);
                ioctl::set_tsc_offset(&self.fd, wanted)?;
                match ioctl::tsc_offset(&self.fd) {
                    Some(offset) => Ok(offset.wrapping_sub(wanted)),
                    None => Ok(0),
                }
            }
            // KVM takes values written within a second of each other for an attempt to keep vCPUs together.
            _ => self.set_msrs(&[(IA32_TSC, state.tsc)]).map(|()| 0),
        }
    }

    fn sregs(&self) -> Result<(kvm_sregs, Option<Pdptrs>)> {
        let sregs = self.fd.get_sregs().named("KVM_GET_SREGS")?;
        if !self.has_sregs2() {
            return Ok((sregs, None));
        }
        let sregs2 = ioctl::sregs2(&self.fd)?;
        Ok((sregs, Some((sregs2.flags, sregs2.pdptrs))))
    }

    fn set_sregs(&self, sregs: &kvm_sregs, pdptrs: Option<Pdptrs>) -> Result<()> {
        let Some((flags, pdptrs)) = pdptrs.filter(|_| self.has_sregs2()) else {
            return self.fd.set_sregs(sregs).named("KVM_SET_SREGS");
        };
        ioctl::set_sregs2(
            &self.fd,
            &kvm_sregs2 {
                cs: sregs.cs,
                ds: sregs.ds,
                es: sregs.es,
                fs: sregs.fs,
                gs: sregs.gs,
                ss: sregs.ss,
                tr: sregs.tr,
                ldt: sregs.ldt,
                gdt: sregs.gdt,
                idt: sregs.idt,
                cr0: sregs.cr0,
                cr2: sregs.cr2,
                cr3: sregs.cr3,
                cr4: sregs.cr4,
                cr8: sregs.cr8,
                efer: sregs.efer,
                apic_base: sregs.apic_base,
                flags,
                pdptrs,
            },
        )
    }

    fn has_sregs2(&self) -> bool {
        self.vm.kvm.check_extension_raw(kvm_bindings::KVM_CAP_SREGS2.into()) > 0
    }

    /// Bytes of this vCPU's XSAVE area; 4096 unless the kernel says more.
    fn xsave_size(&self) -> usize {
        let size = self.vm.fd.check_extension_int(Cap::Xsave2);
        usize::try_from(size).unwrap_or(0).max(size_of::<kvm_xsave>())
    }

    fn xsave(&self) -> Result<Vec<u32>> {
        let extra = self.xsave_size() - size_of::<kvm_xsave>();
        if extra == 0 {
            return Ok(self.fd.get_xsave().named("KVM_GET_XSAVE")?.region.to_vec());
        }
        let mut xsave = self.empty_xsave(extra)?;
        // SAFETY: the area is as long as KVM_CAP_XSAVE2 says.
        unsafe { self.fd.get_xsave2(&mut xsave) }.named("KVM_GET_XSAVE2")?;
        Ok([&xsave.as_fam_struct_ref().xsave.region[..], xsave.as_slice()].concat())
    }

    fn set_xsave(&self, words: &[u32]) -> Result<()> {
        let size = self.xsave_size();
        let most = size / size_of::<u32>();
        let mut base = kvm_xsave::default();
        if words.len() < base.region.len() || words.iter().skip(most).any(|word| *word != 0) {
            return Err(Error::State(format!(
                "an XSAVE area of {} words; this host's has {most}",
                words.len()
            )));
        }
        let (head, tail) = words.split_at(base.region.len());
        base.region.copy_from_slice(head);
        let extra = size - size_of::<kvm_xsave>();
        if extra == 0 {
            // SAFETY: KVM_CAP_XSAVE2 says that this structure is the whole area.
            return unsafe { self.fd.set_xsave(&base) }.named("KVM_SET_XSAVE");
        }
        let mut xsave = self.empty_xsave(extra)?;
        // SAFETY: the length, which is in the same structure, stays what it is.
        unsafe { xsave.as_mut_fam_struct() }.xsave = base;
        for (to, from) in xsave.as_mut_slice().iter_mut().zip(tail) {
            *to = *from;
        }
        // SAFETY: the area is as long as KVM_CAP_XSAVE2 says.
        unsafe { self.fd.set_xsave2(&xsave) }.named("KVM_SET_XSAVE2")
    }

    fn empty_xsave(&self, extra: usize) -> Result<Xsave> {
        Xsave::new(extra.div_ceil(size_of::<u32>()))
            .map_err(|e| Error::State(format!("an XSAVE area: {e:?}")))
    }

    fn msr(&self, index: u32) -> Result<u64> {
        let mut msrs = entries(&[(index, 0)])?;
        match self.fd.get_msrs(&mut msrs).named("KVM_GET_MSRS")? {
            1 => Ok(msrs.as_slice()[0].data),
            _ => Err(Error::Msr { index, value: 0 }),
        }
    }

    /// Every register that the kernel lists and this CPU has, but those of time.
    fn msrs(&self) -> Result<Vec<(u32, u64)>> {
        let listed = self.vm.kvm.get_msr_index_list().named("KVM_GET_MSR_INDEX_LIST")?;
        let mut wanted: Vec<u32> = listed.as_slice().to_vec();
        wanted.extend(MTRRS.iter().filter(|index| !listed.as_slice().contains(index)));
        wanted
            .retain(|index| ![IA32_TSC, IA32_TSC_DEADLINE].contains(index) && !HYPER_V_MSRS.contains(index));
        let mut got = Vec::with_capacity(wanted.len());
        let mut wanted = &wanted[..];
        while !wanted.is_empty() {
            let chunk = &wanted[..wanted.len().min(kvm_bindings::KVM_MAX_MSR_ENTRIES)];
            let mut msrs = entries(&chunk.iter().map(|index| (*index, 0)).collect::<Vec<_>>())?;
            let n = self.fd.get_msrs(&mut msrs).named("KVM_GET_MSRS")?;
            got.extend(msrs.as_slice()[..n].iter().map(|entry| (entry.index, entry.data)));
            // KVM stops at the first that this CPU does not have.
            wanted = &wanted[if n < chunk.len() { n + 1 } else { n }..];
        }
        Ok(got)
    }

    fn set_msrs(&self, mut values: &[(u32, u64)]) -> Result<()> {
        while !values.is_empty() {
            let chunk = &values[..values.len().min(kvm_bindings::KVM_MAX_MSR_ENTRIES)];
            let n = self.fd.set_msrs(&entries(chunk)?).named("KVM_SET_MSRS")?;
            if let Some((index, value)) = chunk.get(n) {
                // Read-only, or without the feature that it belongs to: no matter when it is as it was.
                if self.msr(*index).unwrap_or(0) != *value {
                    return Err(Error::Msr { index: *index, value: *value });
                }
            }
            values = &values[(n + 1).min(chunk.len())..];
        }
        Ok(())
    }
}

fn entries(values: &[(u32, u64)]) -> Result<Msrs> {
    let entries: Vec<_> = values
        .iter()
        .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
        .collect();
    Msrs::from_entries(&entries).map_err(|e| Error::State(format!("{} registers: {e:?}", entries.len())))
}
