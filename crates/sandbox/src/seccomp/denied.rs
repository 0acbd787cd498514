//! The calls that a step may not make, by name and by number in each ABI: what reaches parts of the kernel that
//! are not divided by namespaces, makes namespaces and mounts, or is known for holes.

use super::Abi;

/// The highest number of any call known here (`file_setattr`, the same in all ABIs).
pub(super) const LAST_KNOWN: u32 = 469;

/// A call that is refused.
pub(super) struct Denied {
    /// For reading and tests.
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers and tests"))]
    pub(super) name: &'static str,
    native: Option<u32>,
    i386: Option<u32>,
    arm: Option<u32>,
    /// What it fails with.
    pub(super) errno: i32,
}

impl Denied {
    pub(super) fn number(&self, abi: Abi) -> Option<u32> {
        match abi {
            Abi::Native => self.native,
            Abi::I386 => self.i386,
            Abi::Arm => self.arm,
        }
    }
}

/// Numbers on x86-64, AArch64, i386 and ARM; `-` is none.
macro_rules! table {
    ($($name:ident $x86_64:tt $aarch64:tt $i386:tt $arm:tt $errno:ident;)*) => {
        &[$(Denied {
            name: stringify!($name),
            native: if cfg!(target_arch = "x86_64") { table!(@ $x86_64) } else { table!(@ $aarch64) },
            i386: table!(@ $i386),
            arm: table!(@ $arm),
            errno: libc::$errno,
        }),*]
    };
    (@ -) => { None };
    (@ $number:literal) => { Some($number) };
}

#[rustfmt::skip]
pub(super) const DENIED: &[Denied] = table![
    // name                 x86_64 aarch64 i386 arm
    acct                    163  89  51  51 EPERM;
    add_key                 248 217 286 309 EPERM;
    bpf                     321 280 357 386 EPERM;
    clock_settime           227 112 264 262 EPERM;
    clock_settime64           -   - 404 404 EPERM;
    clone3                  435 435 435 435 ENOSYS;
    create_module           174   - 127   - EPERM;
    delete_module           176 106 129 129 EPERM;
    fanotify_init           300 262 338 367 EPERM;
    finit_module            313 273 350 379 EPERM;
    fsconfig                431 431 431 431 EPERM;
    fsmount                 432 432 432 432 EPERM;
    fsopen                  430 430 430 430 EPERM;
    fspick                  433 433 433 433 EPERM;
    get_kernel_syms         177   - 130   - EPERM;
    get_mempolicy           239 236 275 320 EPERM;
    init_module             175 105 128 128 EPERM;
    io_uring_enter          426 426 426 426 EPERM;
    io_uring_register       427 427 427 427 EPERM;
    io_uring_setup          425 425 425 425 EPERM;
    ioperm                  173   - 101   - EPERM;
    iopl                    172   - 110   - EPERM;
    kcmp                    312 272 349 378 EPERM;
    kexec_file_load         320 294   - 401 EPERM;
    kexec_load              246 104 283 347 EPERM;
    keyctl                  250 219 288 311 EPERM;
    lookup_dcookie          212  18 253 249 EPERM;
    mbind                   237 235 274 319 EPERM;
    migrate_pages           256 238 294 400 EPERM;
    mount                   165  40  21  21 EPERM;
    mount_setattr           442 442 442 442 EPERM;
    move_mount              429 429 429 429 EPERM;
    move_pages              279 239 317 344 EPERM;
    nfsservctl              180  42 169 169 EPERM;
    open_by_handle_at       304 265 342 371 EPERM;
    open_tree               428 428 428 428 EPERM;
    open_tree_attr          467 467 467 467 EPERM;
    perf_event_open         298 241 336 364 EPERM;
    pidfd_getfd             438 438 438 438 EPERM;
    pivot_root              155  41 217 218 EPERM;
    query_module            178   - 167   - EPERM;
    quotactl                179  60 131 131 EPERM;
    quotactl_fd             443 443 443 443 EPERM;
    reboot                  169 142  88  88 EPERM;
    request_key             249 218 287 310 EPERM;
    set_mempolicy           238 237 276 321 EPERM;
    set_mempolicy_home_node 450 450 450 450 EPERM;
    setdomainname           171 162 121 121 EPERM;
    sethostname             170 161  74  74 EPERM;
    setns                   308 268 346 375 EPERM;
    settimeofday            164 170  79  79 EPERM;
    stime                     -   -  25   - EPERM;
    swapoff                 168 225 115 115 EPERM;
    swapon                  167 224  87  87 EPERM;
    sysctl                  156   - 149 149 EPERM;
    sysfs                   139   - 135 135 EPERM;
    syslog                  103 116 103 103 EPERM;
    umount                    -   -  22   - EPERM;
    umount2                 166  39  52  52 EPERM;
    unshare                 272  97 310 337 EPERM;
    uselib                  134   -  86  86 EPERM;
    userfaultfd             323 282 374 388 EPERM;
    ustat                   136   -  62  62 EPERM;
    vhangup                 153  58 111 111 EPERM;
    vm86                      -   - 166   - EPERM;
    vm86old                   -   - 113   - EPERM;
];
