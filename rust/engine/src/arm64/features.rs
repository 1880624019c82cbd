//! Features of the CPU that a guest may have come to rely on: the fields of the ID registers (Arm ARM, D24.2), as a
//! snapshot records them. A guest looks at them once, at boot, so a clone must find at least as much.

use super::{SysReg, Vcpu};

const ID_AA64PFR0_EL1: SysReg = SysReg::new(3, 0, 0, 4, 0);
const ID_AA64PFR1_EL1: SysReg = SysReg::new(3, 0, 0, 4, 1);
const ID_AA64ISAR0_EL1: SysReg = SysReg::new(3, 0, 0, 6, 0);
const ID_AA64ISAR1_EL1: SysReg = SysReg::new(3, 0, 0, 6, 1);
const ID_AA64MMFR1_EL1: SysReg = SysReg::new(3, 0, 0, 7, 1);
const ID_AA64MMFR2_EL1: SysReg = SysReg::new(3, 0, 0, 7, 2);

/// Register, lowest bit of the four, name; each a field of which more is better.
const FIELDS: [(SysReg, u32, &str); 36] = [
    (ID_AA64PFR0_EL1, 16, "FP"),
    (ID_AA64PFR0_EL1, 20, "AdvSIMD"),
    (ID_AA64PFR0_EL1, 32, "SVE"),
    (ID_AA64PFR0_EL1, 48, "DIT"),
    (ID_AA64PFR1_EL1, 0, "BT"),
    (ID_AA64PFR1_EL1, 4, "SSBS"),
    (ID_AA64PFR1_EL1, 8, "MTE"),
    (ID_AA64PFR1_EL1, 24, "SME"),
    (ID_AA64ISAR0_EL1, 4, "AES"),
    (ID_AA64ISAR0_EL1, 8, "SHA1"),
    (ID_AA64ISAR0_EL1, 12, "SHA2"),
    (ID_AA64ISAR0_EL1, 16, "CRC32"),
    (ID_AA64ISAR0_EL1, 20, "Atomic"),
    (ID_AA64ISAR0_EL1, 28, "RDM"),
    (ID_AA64ISAR0_EL1, 32, "SHA3"),
    (ID_AA64ISAR0_EL1, 36, "SM3"),
    (ID_AA64ISAR0_EL1, 40, "SM4"),
    (ID_AA64ISAR0_EL1, 44, "DP"),
    (ID_AA64ISAR0_EL1, 48, "FHM"),
    (ID_AA64ISAR0_EL1, 52, "TS"),
    (ID_AA64ISAR0_EL1, 56, "TLB"),
    (ID_AA64ISAR0_EL1, 60, "RNDR"),
    (ID_AA64ISAR1_EL1, 0, "DPB"),
    (ID_AA64ISAR1_EL1, 4, "APA"),
    (ID_AA64ISAR1_EL1, 8, "API"),
    (ID_AA64ISAR1_EL1, 12, "JSCVT"),
    (ID_AA64ISAR1_EL1, 16, "FCMA"),
    (ID_AA64ISAR1_EL1, 20, "LRCPC"),
    (ID_AA64ISAR1_EL1, 24, "GPA"),
    (ID_AA64ISAR1_EL1, 28, "GPI"),
    (ID_AA64ISAR1_EL1, 32, "FRINTTS"),
    (ID_AA64ISAR1_EL1, 36, "SB"),
    (ID_AA64ISAR1_EL1, 44, "BF16"),
    (ID_AA64ISAR1_EL1, 52, "I8MM"),
    (ID_AA64MMFR1_EL1, 20, "PAN"),
    (ID_AA64MMFR2_EL1, 32, "AT"),
];

/// What a vCPU has, as `name=level`. A register that the engine does not give has none of its features.
pub fn features<V: Vcpu + ?Sized>(vcpu: &V) -> Vec<String> {
    let levels =
        FIELDS.iter().map(|(register, low, name)| (name, level(vcpu.sys_reg(*register).unwrap_or(0), *low)));
    // FP and Advanced SIMD are there from level 0 on, and absent below it.
    levels
        .filter(|(name, level)| *level > 0 || *level == 0 && ["FP", "AdvSIMD"].contains(name))
        .map(|(name, level)| format!("{name}={level}"))
        .collect()
}

/// A field's value: signed, since 15 says that FP and Advanced SIMD are absent; no other field gets that far.
fn level(register: u64, low: u32) -> i8 {
    let field = (register >> low & 15) as i8;
    if field == 15 { -1 } else { field }
}

/// Those of `needed` that `there` does not offer, at that level or a higher one.
pub fn missing(needed: &[String], there: &[String]) -> Vec<String> {
    let parse = |text: &str| {
        let (name, level) = text.split_once('=')?;
        Some((name.to_owned(), level.parse::<i8>().ok()?))
    };
    let there: Vec<_> = there.iter().filter_map(|feature| parse(feature)).collect();
    let offered = |feature: &String| {
        parse(feature).is_some_and(|(name, level)| there.iter().any(|(n, l)| *n == name && *l >= level))
    };
    needed.iter().filter(|feature| !offered(feature)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_more_than_enough_is_enough() {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let there = strings(&["FP=1", "AES=2", "SHA2=1"]);
        assert_eq!(missing(&strings(&["FP=0", "AES=2"]), &there), [""; 0]);
        assert_eq!(
            missing(&strings(&["SHA2=2", "SVE=1", "nonsense"]), &there),
            ["SHA2=2", "SVE=1", "nonsense"]
        );
    }

    #[test]
    fn fields_are_read_where_they_are() {
        assert_eq!(level(0xf << 16, 16), -1);
        assert_eq!(level(2 << 20, 20), 2);
        assert_eq!(level(u64::MAX >> 1, 60), 7);
    }
}
