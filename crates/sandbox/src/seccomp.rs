//! The system call filter of a step, as a BPF program made once. Known calls are allowed but for the list in
//! `denied`; what this version does not know does not exist for the step (`ENOSYS`), so that C libraries fall
//! back. Pure: the child installs it.

mod denied;

use denied::{DENIED, LAST_KNOWN};

/// One BPF instruction.
pub(crate) type Instruction = libc::sock_filter;

/// What to do with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Allow,
    Errno(i32),
    /// Depends on an argument.
    Check(Check),
}

/// Calls that are decided by an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Check {
    /// `clone`: no new namespaces.
    Clone,
    /// `socket`, `socketpair`: only the families that builds need.
    Family,
    /// i386's `socketcall`: no new sockets, since their family cannot be seen.
    SocketCall,
    /// `personality`: only harmless values.
    Personality,
}

/// Which numbering of calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Abi {
    Native,
    I386,
    Arm,
}

/// `AUDIT_ARCH_*`
const ARCH_I386: u32 = 0x4000_0003;
const ARCH_ARM: u32 = 0x4000_0028;
#[cfg(target_arch = "x86_64")]
const ARCH_NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH_NATIVE: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARG0: u32 = 16;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
/// All of `CLONE_NEW*` that `clone` takes.
const NEW_NAMESPACES: u32 = 0x7e02_0000;
/// The bit of x32 calls.
const X32: u32 = 0x4000_0000;

/// The filter for steps in the sandbox.
pub(crate) fn program(i386_sockets: bool) -> Vec<Instruction> {
    let mut out = vec![load(DATA_ARCH)];
    for (arch, abi) in [(ARCH_NATIVE, Abi::Native), foreign()] {
        let body = numbers(&ranges(abi, i386_sockets));
        out.extend(branch(libc::BPF_JEQ, arch, &body));
    }
    out.push(ret(Action::Errno(libc::EPERM)));
    out
}

/// The 32-bit calls that the kernel of this machine also takes.
fn foreign() -> (u32, Abi) {
    if cfg!(target_arch = "x86_64") { (ARCH_I386, Abi::I386) } else { (ARCH_ARM, Abi::Arm) }
}

/// First number and action of each run of equal actions, in order, from 0.
fn ranges(abi: Abi, i386_sockets: bool) -> Vec<(u32, Action)> {
    let mut special: Vec<(u32, Action)> =
        DENIED.iter().filter_map(|entry| Some((entry.number(abi)?, Action::Errno(entry.errno)))).collect();
    special.extend(checks(abi, i386_sockets));
    special.sort_by_key(|(number, _)| *number);
    special.dedup_by_key(|(number, _)| *number);
    let mut out = vec![(0, Action::Allow)];
    let mut push = |start: u32, action: Action| match out.last_mut() {
        Some((at, last)) if *at == start => *last = action,
        Some((_, last)) if *last == action && !matches!(action, Action::Check(_)) => {}
        _ => out.push((start, action)),
    };
    for (number, action) in special {
        push(number, action);
        push(number + 1, Action::Allow);
    }
    match abi {
        // The ABIs have private calls far above; the ones of ARM are harmless (`set_tls`, `cacheflush`).
        Abi::Arm => {
            push(LAST_KNOWN + 1, Action::Errno(libc::ENOSYS));
            push(0x000f_0000, Action::Allow);
        }
        Abi::Native if cfg!(target_arch = "x86_64") => {
            push(LAST_KNOWN + 1, Action::Errno(libc::ENOSYS));
            push(X32, Action::Errno(libc::EPERM));
        }
        Abi::Native | Abi::I386 => push(LAST_KNOWN + 1, Action::Errno(libc::ENOSYS)),
    }
    out
}

fn checks(abi: Abi, i386_sockets: bool) -> Vec<(u32, Action)> {
    use Check::{Clone, Family, Personality, SocketCall};
    let numbers: &[(u32, Check)] = match abi {
        Abi::Native => &[
            (libc::SYS_clone as u32, Clone),
            (libc::SYS_socket as u32, Family),
            (libc::SYS_socketpair as u32, Family),
            (libc::SYS_personality as u32, Personality),
        ],
        Abi::I386 => &[(120, Clone), (359, Family), (360, Family), (136, Personality), (102, SocketCall)],
        Abi::Arm => &[(120, Clone), (281, Family), (288, Family), (136, Personality)],
    };
    let wanted = numbers.iter().filter(|(_, check)| !(i386_sockets && *check == SocketCall));
    wanted.map(|&(number, check)| (number, Action::Check(check))).collect()
}

/// Decides by the number: a binary search.
fn numbers(ranges: &[(u32, Action)]) -> Vec<Instruction> {
    let mut out = vec![load(DATA_NR)];
    out.extend(search(ranges));
    out
}

fn search(ranges: &[(u32, Action)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![ret(Action::Errno(libc::EPERM))],
        [(_, Action::Check(check))] => check_code(*check),
        [(_, action)] => vec![ret(*action)],
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let start = high.first().map_or(0, |(start, _)| *start);
            let mut out = branch(libc::BPF_JGE, start, &search(high));
            out.extend(search(low));
            out
        }
    }
}

/// Code that returns in every case.
fn check_code(check: Check) -> Vec<Instruction> {
    let mut out = vec![load(DATA_ARG0)];
    let mut on = |test: u32, values: &[u32], action: Action| {
        for value in values {
            out.extend(branch(test, *value, &[ret(action)]));
        }
    };
    let last = match check {
        Check::Clone => {
            on(libc::BPF_JSET, &[NEW_NAMESPACES], Action::Errno(libc::EPERM));
            Action::Allow
        }
        Check::Family => {
            let [unix, inet, inet6, netlink, packet] =
                [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET];
            // The kernel asks for NET_RAW before it makes a packet socket.
            on(libc::BPF_JEQ, &[unix, inet, inet6, netlink, packet].map(|f| f as u32), Action::Allow);
            on(libc::BPF_JEQ, &[libc::AF_ALG, libc::AF_VSOCK].map(|f| f as u32), Action::Errno(libc::EPERM));
            Action::Errno(libc::EAFNOSUPPORT)
        }
        Check::SocketCall => {
            const SOCKET_AND_SOCKETPAIR: [u32; 2] = [1, 8];
            on(libc::BPF_JEQ, &SOCKET_AND_SOCKETPAIR, Action::Errno(libc::EPERM));
            Action::Allow
        }
        Check::Personality => {
            on(libc::BPF_JEQ, &[0, 0x8, 0x2_0000, 0x2_0008, u32::MAX], Action::Allow);
            Action::Errno(libc::EPERM)
        }
    };
    out.push(ret(last));
    out
}

fn load(offset: u32) -> Instruction {
    Instruction { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

fn ret(action: Action) -> Instruction {
    let k = match action {
        Action::Allow => RET_ALLOW,
        Action::Errno(errno) => RET_ERRNO | errno as u32,
        Action::Check(_) => RET_ERRNO | libc::EPERM as u32,
    };
    Instruction { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k }
}

/// `then` when the test holds, which must return; otherwise on to what follows.
fn branch(test: u32, value: u32, then: &[Instruction]) -> Vec<Instruction> {
    let code = (libc::BPF_JMP | test | libc::BPF_K) as u16;
    let mut out = match u8::try_from(then.len()) {
        Ok(skip) => vec![Instruction { code, jt: 0, jf: skip, k: value }],
        Err(_) => vec![
            Instruction { code, jt: 1, jf: 0, k: value },
            Instruction { code: (libc::BPF_JMP | libc::BPF_JA) as u16, jt: 0, jf: 0, k: then.len() as u32 },
        ],
    };
    out.extend_from_slice(then);
    out
}

#[cfg(test)]
mod tests;
