//! Garbage collection by policy, as BuildKit's default: what is cheap to make again first, then what nobody used for long, then
//! whatever is over the size, with base images and documents last. Pure: sizes in, passes out.

use std::time::Duration;

use crate::plan::PruneOptions;
use crate::usage::UsageKind;

const HOUR: u64 = 3600;
const GB: u64 = 1_000_000_000;

/// A size, or a part of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Bytes.
    Bytes(u64),
    /// Percent of the file system.
    Percent(u8),
}

impl Share {
    fn of(self, disk: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => disk / 100 * u64::from(percent.min(100)),
        }
    }
}

/// How large the cache may become. What is not set is BuildKit's default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GcPolicy {
    /// This much is never collected; a tenth of the disk, at most 10 GB.
    pub reserved_space: Option<Share>,
    /// Not more than this; four fifths of the disk, at most 100 GB.
    pub max_used_space: Option<Share>,
    /// The disk keeps this much free, as far as the cache can help it; a fifth.
    pub min_free_space: Option<Share>,
}

/// The passes on a file system of `disk` bytes, in order.
pub(crate) fn passes(policy: &GcPolicy, disk: u64) -> Vec<PruneOptions> {
    let part = |share: Option<Share>, default: u64| share.map_or(default, |share| share.of(disk));
    let reserved = part(policy.reserved_space, (disk / 10).min(10 * GB));
    let most = part(policy.max_used_space, (disk / 5 * 4).min(100 * GB));
    let free = part(policy.min_free_space, disk / 5);
    let caps = PruneOptions {
        reserved_space: Some(reserved),
        max_used_space: Some(most),
        min_free_space: Some(free),
        ..PruneOptions::default()
    };
    vec![
        PruneOptions {
            only: Some(UsageKind::CacheMount),
            unused_for: Some(Duration::from_secs(48 * HOUR)),
            reserved_space: Some(512_000_000),
            ..PruneOptions::default()
        },
        PruneOptions {
            all: true,
            unused_for: Some(Duration::from_secs(60 * 24 * HOUR)),
            ..PruneOptions::default()
        },
        caps.clone(),
        PruneOptions { all: true, ..caps },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_follow_the_disk_and_what_was_said() {
        let caps = |policy: GcPolicy, disk: u64| {
            let last = passes(&policy, disk).pop().unwrap();
            [last.reserved_space, last.max_used_space, last.min_free_space].map(|it| it.unwrap() / GB)
        };
        let plain = GcPolicy::default();
        assert_eq!(caps(plain, 50 * GB), [5, 40, 10]);
        assert_eq!(caps(plain, 1000 * GB), [10, 100, 200]);
        let said = GcPolicy {
            max_used_space: Some(Share::Bytes(7 * GB)),
            min_free_space: Some(Share::Percent(1)),
            ..plain
        };
        assert_eq!(caps(said, 1000 * GB), [10, 7, 10]);
        assert!(passes(&plain, 0).iter().any(|pass| pass.all));
    }
}
