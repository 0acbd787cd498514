//! Garbage collection's decisions, as tables: facts in, what goes out.

use std::time::Duration;

use super::{UsageKind, everything};
use crate::PruneOptions;
use crate::facts::{Facts, LayerFact, RecordFact, Stack};
use crate::plan::{Unit, plan};
use rbuild_digest::Digest;
use rbuild_ports::{CacheMountInfo, RecordKind, Timestamp};
use rbuild_store::BlobInfo;

const SECOND: i64 = 1_000_000_000;
const MIB: u64 = 1 << 20;

/// Facts from lines: `layer <name> <MiB> [image] [pinned]`, `record <seconds unused> <cost ms> <layer>… [pinned]
/// [superseded] [imported]`, `blob <seconds unused> <MiB> [pinned]`, `mount <seconds unused> <MiB> [busy]`.
fn facts(text: &str) -> Facts {
    let mut out = Facts { now: 1_000_000 * SECOND, free: 10 * MIB, ..Facts::default() };
    let ago = |word: &str| 1_000_000 * SECOND - word.parse::<i64>().unwrap() * SECOND;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let has = |word: &str| words.contains(&word);
        let size = |at: usize| words[at].parse::<u64>().unwrap() * MIB;
        match words[0] {
            "layer" => out.layers.push(LayerFact {
                row: out.layers.len() as i64,
                id: words[1].parse().unwrap(),
                bytes: size(2),
                created: 0,
                images: if has("image") { vec!["image".to_owned()] } else { vec![] },
                place: None,
                pinned: has("pinned"),
            }),
            "record" => {
                let index = |word: &&str| out.layers.iter().position(|layer| layer.id.as_str() == *word);
                let layers: Vec<usize> = words[3..].iter().filter_map(index).collect();
                let record = RecordFact {
                    id: 0,
                    created: 0,
                    last_used: ago(words[1]),
                    uses: 1,
                    cost_ms: words[2].parse().unwrap(),
                    kind: if has("imported") { RecordKind::Imported } else { RecordKind::Local },
                    description: String::new(),
                    superseded: has("superseded"),
                    pinned: has("pinned"),
                };
                match out.stacks.iter_mut().find(|stack| stack.layers == layers) {
                    Some(stack) => stack.records.push(record),
                    None => out.stacks.push(Stack { layers, records: vec![record] }),
                }
            }
            "blob" => {
                let digest = Digest::of(line);
                out.blobs.push((
                    BlobInfo { digest, size: size(2), used: Timestamp(ago(words[1])) },
                    has("pinned"),
                ));
            }
            "mount" => out.mounts.push(CacheMountInfo {
                id: format!("mount{}", out.mounts.len()),
                bytes: size(2),
                last_used: Timestamp(ago(words[1])),
                in_use: has("busy"),
            }),
            other => panic!("{other}"),
        }
    }
    out
}

/// What goes: layers by name in order, then other units, then how many are in use.
fn goes(text: &str, options: &PruneOptions) -> String {
    let facts = facts(text);
    let plan = plan(&facts, options);
    let mut out: Vec<String> =
        plan.layers.iter().map(|(at, reason)| format!("{}: {reason}", facts.layers[*at].id)).collect();
    out.extend(plan.units.iter().filter_map(|(unit, reason)| match unit {
        Unit::Stack(_) => None,
        Unit::Blob(at) => Some(format!("blob{at}: {reason}")),
        Unit::Mount(at) => Some(format!("mount{at}: {reason}")),
    }));
    if plan.in_use > 0 {
        out.push(format!("in use: {}", plan.in_use));
    }
    out.join("; ")
}

fn plain() -> PruneOptions {
    PruneOptions { all: false, ..everything() }
}

#[test]
fn unused_cache_goes_and_base_images_only_with_all() {
    let text = "
        layer dbase 50
        layer a 1
        layer b 1
        record 10 1000 dbase
        record 10 1000 dbase a
        record 10 1000 dbase a b
    ";
    assert_eq!(goes(text, &plain()), "b: as requested; a: as requested");
    assert_eq!(goes(text, &everything()), "b: as requested; a: as requested; dbase: as requested");
}

#[test]
fn imported_layers_are_no_base_images() {
    let text = "
        layer dlayer 50
        record 10 1000 dlayer imported
    ";
    assert_eq!(goes(text, &plain()), "dlayer: as requested");
}

#[test]
fn named_images_keep_their_layers() {
    let text = "
        layer dbase 50 image
        layer a 1 image
        layer b 1
        record 10 1000 dbase
        record 10 1000 dbase a
        record 10 1000 dbase a b
    ";
    for options in [plain(), everything()] {
        assert_eq!(goes(text, &options), "b: as requested");
    }
    assert_eq!(plan(&facts(text), &plain()).units.len(), 1, "records that free nothing stay");
    assert_eq!(plan(&facts(text), &everything()).units.len(), 3, "all means all");
}

#[test]
fn what_a_build_uses_stays() {
    let text = "
        layer a 1 pinned
        layer b 1 pinned
        layer c 1
        record 10 1000 a
        record 10 1000 a b
        record 10 1000 a b c
        record 10 1000 a c pinned
        blob 10 9 pinned
        mount 10 1 busy
    ";
    assert_eq!(goes(text, &everything()), "in use: 5");
}

#[test]
fn orphans_go_first() {
    let text = "
        layer lost 3
        layer held 1 pinned
        layer a 1
        record 10 1000 a
    ";
    assert_eq!(goes(text, &plain()), "lost: nothing refers to it; a: as requested");
    let small = PruneOptions { max_used_space: Some(2 * MIB), ..plain() };
    assert_eq!(goes(text, &small), "lost: nothing refers to it");
}

#[test]
fn a_layer_under_one_in_use_stays_whatever_its_own_age() {
    let text = "
        layer a 1
        layer b 1
        layer c 1
        record 9000 1000 a
        record 10 1000 a b
        record 9000 1000 a c
    ";
    let old = PruneOptions { unused_for: Some(Duration::from_secs(1000)), ..plain() };
    assert_eq!(goes(text, &old), "c: unused for long");
    let all = PruneOptions { all: true, ..old };
    assert_eq!(goes(text, &all), "c: unused for long");
}

#[test]
fn limits_stop_it() {
    let text = "
        layer a 1
        layer b 2
        layer c 4
        record 300 1000 a
        record 200 1000 b
        record 90 1000 c
    ";
    // By bytes and age b goes first, then c, then a.
    let cases = [
        (Some(7), None, None, ""),
        (Some(6), None, None, "b: over the limit"),
        (Some(3), None, None, "b: over the limit; c: over the limit"),
        (Some(0), None, None, "b: over the limit; c: over the limit; a: over the limit"),
        (Some(0), None, Some(1), "b: over the limit; c: over the limit"),
        (None, None, Some(5), "b: over the limit"),
        (None, Some(10), None, ""),
        (None, Some(11), None, "b: over the limit"),
        (None, Some(13), None, "b: over the limit; c: over the limit"),
        (Some(7), Some(11), None, "b: over the limit"),
        (Some(5), Some(11), None, "b: over the limit"),
        (None, Some(99), Some(5), "b: over the limit"),
    ];
    for (most, free, reserved, expected) in cases {
        let mib = |count: Option<u64>| count.map(|count| count * MIB);
        let options = PruneOptions {
            max_used_space: mib(most),
            min_free_space: mib(free),
            reserved_space: mib(reserved),
            ..plain()
        };
        assert_eq!(goes(text, &options), expected, "{most:?} {free:?} {reserved:?}");
    }
}

#[test]
fn the_least_worth_goes_first() {
    let order = |text: &str| {
        goes(text, &plain()).replace(": as requested", "").replace(": a newer result is there", "")
    };
    let cost = "
        layer slow 1
        layer quick 1
        record 10 900000 slow
        record 10 100 quick
    ";
    assert_eq!(order(cost), "quick; slow");
    let size = "
        layer small 1
        layer large 100
        record 10 1000 small
        record 10 1000 large
    ";
    assert_eq!(order(size), "large; small");
    let replaced = "
        layer old 1
        layer large 100
        record 10 1000 old superseded
        record 10 1000 large
    ";
    assert_eq!(order(replaced), "old; large");
    let child_is_dear = "
        layer a 100
        layer b 1
        layer c 1
        record 5000 100 a
        record 10 900000 a b
        record 10 1000 c
    ";
    assert_eq!(order(child_is_dear), "c; b; a", "what is below is worth what is above it");
}

#[test]
fn equal_layers_under_several_keys_go_together() {
    let text = "
        layer dbase 5
        record 9000 1000 dbase
        record 10 1000 dbase
    ";
    let old = PruneOptions { unused_for: Some(Duration::from_secs(1000)), ..everything() };
    assert_eq!(goes(text, &old), "");
    assert_eq!(goes(text, &everything()), "dbase: as requested");
}

#[test]
fn documents_stay_and_leftovers_go() {
    let text = "
        blob 10 1
        blob 10 400
        mount 10 1
    ";
    assert_eq!(goes(text, &plain()), "blob1: as requested; mount0: as requested");
    assert_eq!(goes(text, &everything()), "blob1: as requested; blob0: as requested; mount0: as requested");
}

#[test]
fn one_kind_alone_can_go() {
    let text = "
        layer a 1
        record 10 1000 a
        blob 10 400
        mount 10 1
    ";
    let only = |kind| goes(text, &PruneOptions { only: Some(kind), ..everything() });
    assert_eq!(only(UsageKind::Layer), "a: as requested");
    assert_eq!(only(UsageKind::Blob), "blob0: as requested");
    assert_eq!(only(UsageKind::CacheMount), "mount0: as requested");
}

#[test]
fn a_clock_that_went_back_makes_nothing_old() {
    let text = "
        layer a 1
        record -5000 1000 a
    ";
    let old = PruneOptions { unused_for: Some(Duration::from_secs(1)), ..plain() };
    assert_eq!(goes(text, &old), "");
}

/// On random stores: nothing protected goes, no layer goes under one that stays, and limits are met when they can be.
#[test]
fn it_keeps_its_rules_on_random_stores() {
    let mut state = 11_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..500 {
        let mut text = String::new();
        let count = 2 + random(6);
        for at in 0..count {
            let flags = ["", "", "", " image", " pinned"][random(5) as usize];
            text.push_str(&format!("layer {}{at} {}{flags}\n", ["d", "s"][random(2) as usize], random(9)));
        }
        for _ in 0..random(9) {
            let base = facts(&text).layers;
            let mut names: Vec<String> =
                base.iter().filter(|_| random(2) == 0).map(|layer| layer.id.to_string()).collect();
            names.dedup();
            let flags = ["", "", "pinned", "superseded"][random(4) as usize];
            text.push_str(&format!("record {} {} {} {flags}\n", random(999), random(9999), names.join(" ")));
        }
        let facts = facts(&text);
        let options = PruneOptions {
            all: random(2) == 0,
            unused_for: (random(3) == 0).then(|| Duration::from_secs(random(999))),
            max_used_space: (random(2) == 0).then(|| random(30) * MIB),
            ..everything()
        };
        let plan = plan(&facts, &options);
        let gone: Vec<usize> = plan.layers.iter().map(|(at, _)| *at).collect();
        for at in &gone {
            assert!(!facts.layers[*at].pinned && facts.layers[*at].images.is_empty(), "{text}{plan:?}");
        }
        let gone_stacks: Vec<usize> = plan
            .units
            .iter()
            .filter_map(|(unit, _)| if let Unit::Stack(at) = unit { Some(*at) } else { None })
            .collect();
        for (at, stack) in facts.stacks.iter().enumerate() {
            let goes = gone_stacks.contains(&at);
            assert!(goes || stack.layers.iter().all(|layer| !gone.contains(layer)), "{text}{plan:?}");
            assert!(!goes || stack.records.iter().all(|record| !record.pinned), "{text}{plan:?}");
        }
        let mut unique = gone.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), gone.len(), "{text}{plan:?}");
    }
}
