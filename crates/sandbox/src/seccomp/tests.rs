//! The program is run here by a small interpreter of the instructions it uses.

use super::*;

/// What the filter answers: 0 is allowed.
fn run(program: &[Instruction], arch: u32, nr: u32, arg0: u64) -> i32 {
    let (mut at, mut acc) = (0usize, 0u32);
    for _ in 0..10_000 {
        let i = program[at];
        at += 1;
        match u32::from(i.code) {
            c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                acc = match i.k {
                    DATA_NR => nr,
                    DATA_ARCH => arch,
                    DATA_ARG0 => arg0 as u32,
                    other => panic!("load {other}"),
                }
            }
            c if c == libc::BPF_RET | libc::BPF_K => {
                return if i.k == RET_ALLOW { 0 } else { (i.k & 0xffff) as i32 };
            }
            c if c == libc::BPF_JMP | libc::BPF_JA => at += i.k as usize,
            c => {
                let holds = match c & 0xf0 {
                    libc::BPF_JEQ => acc == i.k,
                    libc::BPF_JGE => acc >= i.k,
                    libc::BPF_JSET => acc & i.k != 0,
                    other => panic!("jump {other}"),
                };
                at += usize::from(if holds { i.jt } else { i.jf });
            }
        }
    }
    panic!("the program does not end");
}

fn native(nr: libc::c_long, arg0: u64) -> i32 {
    run(&program(false), ARCH_NATIVE, nr as u32, arg0)
}

#[test]
fn every_number_is_decided_as_the_table_says() {
    let program = program(false);
    assert!(program.len() < 1500, "{}", program.len());
    for (arch, abi) in [(ARCH_NATIVE, Abi::Native), foreign()] {
        let special: Vec<u32> = checks(abi, false).iter().map(|(n, _)| *n).collect();
        for nr in 0..2000 {
            if special.contains(&nr) {
                continue;
            }
            let expected = match DENIED.iter().find(|entry| entry.number(abi) == Some(nr)) {
                Some(entry) => entry.errno,
                None if nr > LAST_KNOWN => libc::ENOSYS,
                None => 0,
            };
            assert_eq!(run(&program, arch, nr, 0), expected, "{abi:?} {nr}");
        }
    }
    assert_eq!(run(&program, 0xdead_beef, 1, 0), libc::EPERM);
}

#[test]
fn numbers_are_those_of_libc() {
    macro_rules! same {
        ($($name:literal $constant:ident),*) => { $(
            let entry = DENIED.iter().find(|entry| entry.name == $name).expect($name);
            assert_eq!(entry.number(Abi::Native), Some(libc::$constant as u32), $name);
        )* };
    }
    same!("acct" SYS_acct, "add_key" SYS_add_key, "bpf" SYS_bpf, "clock_settime" SYS_clock_settime,
        "clone3" SYS_clone3, "delete_module" SYS_delete_module, "fanotify_init" SYS_fanotify_init,
        "finit_module" SYS_finit_module, "fsconfig" SYS_fsconfig, "fsmount" SYS_fsmount, "fsopen" SYS_fsopen,
        "fspick" SYS_fspick, "get_mempolicy" SYS_get_mempolicy, "init_module" SYS_init_module,
        "io_uring_enter" SYS_io_uring_enter, "io_uring_register" SYS_io_uring_register,
        "io_uring_setup" SYS_io_uring_setup, "kcmp" SYS_kcmp, "kexec_file_load" SYS_kexec_file_load,
        "kexec_load" SYS_kexec_load, "keyctl" SYS_keyctl, "lookup_dcookie" SYS_lookup_dcookie,
        "mbind" SYS_mbind, "migrate_pages" SYS_migrate_pages, "mount" SYS_mount,
        "mount_setattr" SYS_mount_setattr, "move_mount" SYS_move_mount, "move_pages" SYS_move_pages,
        "nfsservctl" SYS_nfsservctl, "open_by_handle_at" SYS_open_by_handle_at, "open_tree" SYS_open_tree,
        "perf_event_open" SYS_perf_event_open, "pidfd_getfd" SYS_pidfd_getfd, "pivot_root" SYS_pivot_root,
        "quotactl" SYS_quotactl, "quotactl_fd" SYS_quotactl_fd, "reboot" SYS_reboot,
        "request_key" SYS_request_key, "set_mempolicy" SYS_set_mempolicy,
        "set_mempolicy_home_node" SYS_set_mempolicy_home_node, "setdomainname" SYS_setdomainname,
        "sethostname" SYS_sethostname, "setns" SYS_setns, "settimeofday" SYS_settimeofday,
        "swapoff" SYS_swapoff, "swapon" SYS_swapon, "syslog" SYS_syslog, "umount2" SYS_umount2,
        "unshare" SYS_unshare, "userfaultfd" SYS_userfaultfd, "vhangup" SYS_vhangup);
    #[cfg(target_arch = "x86_64")]
    same!("ioperm" SYS_ioperm,
        "iopl" SYS_iopl, "sysctl" SYS__sysctl, "sysfs" SYS_sysfs,
        "uselib" SYS_uselib, "ustat" SYS_ustat);
}

#[test]
fn arguments_decide() {
    let families = [
        (libc::AF_UNIX, 0),
        (libc::AF_INET, 0),
        (libc::AF_INET6, 0),
        (libc::AF_NETLINK, 0),
        (libc::AF_PACKET, 0),
        (libc::AF_ALG, libc::EPERM),
        (libc::AF_VSOCK, libc::EPERM),
        (libc::AF_RDS, libc::EAFNOSUPPORT),
        (libc::AF_CAN, libc::EAFNOSUPPORT),
    ];
    for (family, errno) in families {
        assert_eq!(native(libc::SYS_socket, family as u64), errno, "{family}");
        assert_eq!(native(libc::SYS_socketpair, family as u64), errno, "{family}");
    }
    assert_eq!(native(libc::SYS_clone, libc::SIGCHLD as u64), 0);
    assert_eq!(native(libc::SYS_clone, 0x3d_0f00), 0, "a thread");
    for flag in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWCGROUP,
    ] {
        assert_eq!(native(libc::SYS_clone, flag as u64), libc::EPERM);
    }
    assert_eq!(native(libc::SYS_personality, 0xffff_ffff), 0);
    assert_eq!(native(libc::SYS_personality, 0x8), 0);
    assert_eq!(native(libc::SYS_personality, 0x4_0000), libc::EPERM);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn old_ways_into_the_kernel_are_closed() {
    assert_eq!(run(&program(false), ARCH_NATIVE, X32 | 41, 38), libc::EPERM, "x32 socket");
    for (call, expected) in [(1, libc::EPERM), (8, libc::EPERM), (3, 0), (9, 0)] {
        assert_eq!(run(&program(false), ARCH_I386, 102, call), expected, "socketcall {call}");
        assert_eq!(run(&program(true), ARCH_I386, 102, call), 0, "socketcall {call}, opened");
    }
    assert_eq!(run(&program(true), ARCH_I386, 359, 38), libc::EPERM, "i386 socket");
}
