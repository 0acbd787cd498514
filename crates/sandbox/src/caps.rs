//! Which capabilities a step has. Pure.

/// Capability numbers that are kept in a sandbox: what package managers and ordinary builds need. Left out on
/// purpose, though other engines grant them: `NET_RAW` (spoofing; `ping` works without) and `AUDIT_WRITE` (host's
/// log).
const KEPT: &[u8] = &[
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP
    10, // NET_BIND_SERVICE
    18, // SYS_CHROOT
    31, // SETFCAP
];
/// `MKNOD`: harmless in a user namespace, where the kernel lets nobody use it for devices.
const MKNOD: u8 = 27;

/// The set a step may have at most, as a bit mask.
pub(crate) fn allowed(insecure: bool, user_namespace: bool) -> u64 {
    if insecure {
        return u64::MAX;
    }
    let kept = KEPT.iter().fold(0, |mask, cap| mask | 1 << cap);
    if user_namespace { kept | 1 << MKNOD } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        assert_eq!(allowed(false, false), 0x8004_05fb);
        assert_eq!(allowed(false, true), 0x8804_05fb);
        assert_eq!(allowed(true, false), u64::MAX);
        for dangerous in
            [2u8, 9, 11, 12, 13, 16, 17, 19, 21, 22, 23, 24, 25, 29, 30, 32, 33, 34, 37, 38, 39, 40]
        {
            assert_eq!(allowed(false, true) >> dangerous & 1, 0, "{dangerous}");
        }
    }
}
