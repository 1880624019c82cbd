//! What CPU a guest sees: the host's, filtered to what can be saved and restored, and recorded so that a snapshot
//! from a CPU with more features is refused with their names.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use super::features::{self, HTT, KVM_FEATURES, KVM_SIGNATURE, OSXSAVE, Register, WORDS, XCR0};
use crate::kvm::{Error, Result};

/// Version of the encoding of [`CpuModel`].
const VERSION: u32 = 1;
/// Entries that a model may have; KVM takes 256 for a vCPU.
const MOST_ENTRIES: usize = 128;
/// Leaves that guests get beside those of features: identification, caches, sizes of state, topology, names,
/// frequencies. What is not listed reads as zeros.
const LEAVES: &[u32] = &[
    0,
    1,
    4,
    6,
    7,
    0xb,
    0xd,
    0x15,
    0x16,
    KVM_SIGNATURE,
    KVM_FEATURES,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_0021,
];
/// Extended topology: the kinds of its levels (Intel SDM, CPUID leaf 0BH, ECX 15:8).
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// One answer of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// What EAX has before CPUID.
    pub leaf: u32,
    /// What ECX has before CPUID.
    pub subleaf: u32,
    /// Whether the subleaf matters.
    pub indexed: bool,
    /// What EAX has then.
    pub eax: u32,
    /// What EBX has then.
    pub ebx: u32,
    /// What ECX has then.
    pub ecx: u32,
    /// What EDX has then.
    pub edx: u32,
}

saved_structure!(Leaf { leaf: u32, subleaf: u32, indexed: bool, eax: u32, ebx: u32, ecx: u32, edx: u32 });

impl Leaf {
    fn register(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// The CPU of a machine, the same for all its vCPUs but for their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    leaves: Vec<Leaf>,
    /// Frequency of the time stamp counter.
    pub tsc_khz: u32,
}

saved_structure!(CpuModel { leaves: Vec<Leaf>, tsc_khz: u32 });

impl CpuModel {
    /// The most that guests of this host may have. `supported` is what KVM_GET_SUPPORTED_CPUID gave.
    pub fn of_host(supported: &CpuId, tsc_deadline: bool, tsc_khz: u32) -> Self {
        let entries = supported.as_slice().iter().filter(|e| LEAVES.contains(&e.function));
        let mut leaves: Vec<Leaf> = entries
            .map(|e| Leaf {
                leaf: e.function,
                subleaf: e.index,
                indexed: e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
                eax: e.eax,
                ebx: e.ebx,
                ecx: e.ecx,
                edx: e.edx,
            })
            .collect();
        leaves
            .retain(|leaf| leaf.leaf != 0xd || leaf.subleaf < 2 || u64::from(XCR0) >> leaf.subleaf & 1 == 1);
        leaves.retain(|leaf| leaf.leaf != 7 || leaf.subleaf <= 2);
        // The state of x87 and SSE with its header, or the end of the last component beyond them (EAX bytes at EBX).
        let size = leaves.iter().filter(|leaf| leaf.leaf == 0xd && leaf.subleaf >= 2);
        let size = size.map(|leaf| leaf.eax.saturating_add(leaf.ebx)).max().unwrap_or(0).max(576);
        for leaf in &mut leaves {
            leaf.filter(tsc_deadline, size);
        }
        Self { leaves, tsc_khz }
    }

    /// Checks that a host whose own model is `host` can run this one.
    pub fn check(&self, host: &Self) -> Result<()> {
        let vendor = |model: &Self| model.find(0, 0).map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
        if vendor(self) != vendor(host) {
            let name = |model: &Self| {
                let bytes: Vec<u8> =
                    vendor(model).unwrap_or_default().iter().flat_map(|r| r.to_le_bytes()).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            return Err(Error::Vendor { saved: name(self), host: name(host) });
        }
        let mut missing = Vec::new();
        for word in WORDS {
            let of = |model: &Self| {
                model.find(word.leaf, word.subleaf).map_or(0, |mut leaf| *leaf.register(word.register))
            };
            let lacking = of(self) & !of(host);
            missing.extend((0..32).filter(|bit| lacking >> bit & 1 == 1).map(|bit| {
                let named = word.bits.iter().find(|(n, _)| *n == bit);
                named.map_or_else(
                    || format!("CPUID leaf {:#x}.{} {:?} bit {bit}", word.leaf, word.subleaf, word.register),
                    |(_, name)| (*name).into(),
                )
            }));
        }
        let lacking = self.xcr0() & !host.xcr0();
        missing.extend((0..64).filter(|n| lacking >> n & 1 == 1).map(|n| format!("state component {n}")));
        missing.dedup();
        if missing.is_empty() { Ok(()) } else { Err(Error::Features(missing)) }
    }

    /// The names of what the guest may rely on.
    pub fn features(&self) -> Vec<String> {
        let mut names = Vec::new();
        for word in WORDS {
            let bits = self.find(word.leaf, word.subleaf).map_or(0, |mut leaf| *leaf.register(word.register));
            names.extend(
                word.bits.iter().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| (*name).into()),
            );
        }
        names
    }

    /// What vCPU `index` of `count` answers to CPUID.
    pub fn for_vcpu(&self, index: u32, count: u32) -> Result<CpuId> {
        let mut leaves = self.leaves.clone();
        // One package; every vCPU a core with one thread.
        let span = count.next_power_of_two();
        for leaf in &mut leaves {
            match leaf.leaf {
                1 => {
                    leaf.ebx = leaf.ebx & 0xffff | index << 24 | span << 16;
                    leaf.edx = if count > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
                }
                // Caches: the last level is shared by all, the others belong to a core. Bits 31:26 count cores, 25:14
                // the threads that share.
                4 if leaf.eax & 0x1f != 0 => {
                    let sharing = if leaf.eax >> 5 & 7 >= 3 { span - 1 } else { 0 };
                    leaf.eax = leaf.eax & 0x3fff | (span - 1) << 26 | sharing << 14;
                }
                0x8000_0008 => leaf.ecx = (count - 1) | span.ilog2() << 12,
                _ => {}
            }
        }
        if leaves.iter().any(|leaf| leaf.leaf == 0xb) {
            leaves.retain(|leaf| leaf.leaf != 0xb);
            let level = |subleaf, eax, ebx, kind: u32| Leaf {
                leaf: 0xb,
                subleaf,
                indexed: true,
                eax,
                ebx,
                ecx: subleaf | kind,
                edx: index,
            };
            leaves.push(level(0, 0, 1, LEVEL_THREAD));
            leaves.push(level(1, span.ilog2(), count, LEVEL_CORE));
            leaves.push(level(2, 0, 0, 0));
        }
        let entries: Vec<kvm_cpuid_entry2> = leaves
            .iter()
            .map(|leaf| kvm_cpuid_entry2 {
                function: leaf.leaf,
                index: leaf.subleaf,
                flags: if leaf.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
                eax: leaf.eax,
                ebx: leaf.ebx,
                ecx: leaf.ecx,
                edx: leaf.edx,
                ..Default::default()
            })
            .collect();
        CpuId::from_entries(&entries)
            .map_err(|e| Error::State(format!("a CPU of {} leaves: {e:?}", entries.len())))
    }

    /// The form that a snapshot holds.
    pub fn encode(&self) -> Result<Vec<u8>> {
        crate::kvm::encode(VERSION, self)
    }

    /// What [`CpuModel::encode`] gave.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let model: Self = crate::kvm::decode(VERSION, bytes)?;
        if model.leaves.len() > MOST_ENTRIES {
            return Err(Error::State(format!("a CPU of {} leaves", model.leaves.len())));
        }
        Ok(model)
    }

    fn find(&self, leaf: u32, subleaf: u32) -> Option<Leaf> {
        self.leaves.iter().find(|l| l.leaf == leaf && l.subleaf == subleaf).copied()
    }

    /// State components that the guest may enable.
    fn xcr0(&self) -> u64 {
        self.find(0xd, 0).map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax))
    }
}

impl Leaf {
    /// Takes away what guests do not get.
    fn filter(&mut self, tsc_deadline: bool, xsave_size: u32) {
        let (leaf, subleaf) = (self.leaf, self.subleaf);
        for word in WORDS.iter().filter(|word| (word.leaf, word.subleaf) == (leaf, subleaf)) {
            *self.register(word.register) &= word.mask();
        }
        match (self.leaf, self.subleaf) {
            (1, _) => {
                self.ecx = (self.ecx | features::HYPERVISOR) & !OSXSAVE;
                if tsc_deadline {
                    self.ecx |= features::TSC_DEADLINE;
                }
            }
            (6, _) => (self.ebx, self.ecx, self.edx) = (0, 0, 0),
            // EAX is the highest subleaf.
            (7, 0) => self.eax = self.eax.min(2),
            (7, 1) => (self.ebx, self.ecx) = (0, 0),
            (7, 2) => (self.eax, self.ebx, self.ecx) = (0, 0, 0),
            // EBX, the size of what is enabled, is KVM's to compute; ECX is the size of all.
            (0xd, 0) => (self.eax, self.ecx, self.edx) = (self.eax & XCR0, xsave_size, 0),
            // No supervisor components.
            (0xd, 1) => (self.ecx, self.edx) = (0, 0),
            // No leaves of KVM's beyond its features.
            (KVM_SIGNATURE, _) => self.eax = KVM_FEATURES,
            (KVM_FEATURES, _) => (self.ebx, self.ecx, self.edx) = (0, 0, 0),
            (0x8000_0008, _) => self.edx = 0,
            (0x8000_0021, _) => (self.ebx, self.ecx, self.edx) = (0, 0, 0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        let flags = if [4, 7, 0xb, 0xd].contains(&function) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// A host that claims every bit there is.
    fn everything() -> CpuId {
        let mut entries = vec![entry(0, 0, [0x24, 0x756e_6547, 0x6c65_746e, 0x4965_6e69])];
        entries.push(entry(4, 3, [0x163, 0, 0, 0]));
        entries.push(entry(0x14, 0, [u32::MAX; 4]));
        for (leaf, subleaf) in
            [(1, 0), (7, 0), (7, 1), (7, 2), (7, 3), (0xb, 0), (0xd, 0), (0xd, 2), (0xd, 17)]
        {
            entries.push(entry(leaf, subleaf, [u32::MAX; 4]));
        }
        for leaf in [KVM_SIGNATURE, KVM_FEATURES, 0x8000_0001, 0x8000_0008] {
            entries.push(entry(leaf, 0, [u32::MAX; 4]));
        }
        CpuId::from_entries(&entries).unwrap()
    }

    #[test]
    fn features_without_saved_state_are_taken_away() {
        let model = CpuModel::of_host(&everything(), true, 1_000_000);
        let leaf = |leaf, subleaf| model.find(leaf, subleaf).unwrap();
        // VMX, MONITOR, PDCM; SVM; MPX, RTM, SGX, PT; AMX, LBR; asynchronous page faults, steal time.
        assert_eq!(leaf(1, 0).ecx & (1 << 5 | 1 << 3 | 1 << 15), 0);
        assert_eq!(leaf(0x8000_0001, 0).ecx & 1 << 2, 0);
        assert_eq!(leaf(7, 0).ebx & (1 << 14 | 1 << 11 | 1 << 2 | 1 << 25), 0);
        assert_eq!(leaf(7, 0).edx & (1 << 22 | 1 << 24 | 1 << 25 | 1 << 19), 0);
        assert_eq!(leaf(KVM_FEATURES, 0).eax & (1 << 4 | 1 << 5), 0);
        assert_eq!(model.xcr0(), u64::from(XCR0));
        assert!(model.find(0xd, 17).is_none() && model.find(0x14, 0).is_none() && model.find(7, 3).is_none());
        // And what guests live on is there.
        assert_eq!(leaf(1, 0).ecx & features::HYPERVISOR, features::HYPERVISOR);
        assert_eq!(leaf(KVM_FEATURES, 0).eax & 1 << 3, 1 << 3);
    }

    #[test]
    fn a_richer_cpu_is_refused_by_name() {
        let rich = CpuModel::of_host(&everything(), true, 1_000_000);
        let mut poor = rich.clone();
        for leaf in &mut poor.leaves {
            match (leaf.leaf, leaf.subleaf) {
                (7, 0) => leaf.ebx &= !(1 << 5 | 1 << 16),
                (0xd, 0) => leaf.eax &= !(1 << 5),
                _ => {}
            }
        }
        poor.check(&rich).unwrap();
        let Err(Error::Features(missing)) = rich.check(&poor) else { panic!("accepted") };
        assert_eq!(missing, ["avx2", "avx512f", "state component 5"]);
        let mut other = rich.clone();
        other.leaves[0].ebx = 0x6874_7541;
        assert!(matches!(rich.check(&other), Err(Error::Vendor { saved, .. }) if saved == "GenuineIntel"));
    }

    #[test]
    fn a_model_survives_its_encoding_and_a_foreign_one_is_refused() {
        let model = CpuModel::of_host(&everything(), true, 2_600_000);
        let bytes = model.encode().unwrap();
        assert_eq!(CpuModel::decode(&bytes).unwrap(), model);
        assert!(CpuModel::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(CpuModel::decode(&[bytes.clone(), vec![0]].concat()).is_err());
        let newer = [vec![VERSION as u8 + 1], bytes[1..].to_vec()].concat();
        assert!(matches!(CpuModel::decode(&newer), Err(Error::Version { found: 2, .. })));
    }

    #[test]
    fn vcpus_are_cores_of_one_package() {
        let model = CpuModel::of_host(&everything(), true, 1_000_000);
        let cpuid = model.for_vcpu(2, 3).unwrap();
        let find = |leaf, subleaf| {
            *cpuid.as_slice().iter().find(|e| e.function == leaf && e.index == subleaf).unwrap()
        };
        assert_eq!(find(1, 0).ebx >> 16, 2 << 8 | 4);
        assert_eq!(find(1, 0).edx & HTT, HTT);
        assert_eq!((find(0xb, 1).eax, find(0xb, 1).ebx, find(0xb, 1).edx), (2, 3, 2));
        assert_eq!(find(4, 3).eax, 3 << 26 | 3 << 14 | 0x163);
        let one = model.for_vcpu(0, 1).unwrap();
        assert!(one.as_slice().iter().all(|e| e.function != 1 || e.edx & HTT == 0));
    }
}
