//! AND over inputs of OR over alternatives; what is learned when a key is saved.

use super::*;

/// Saves a key without a record.
fn save(open: &Open, op: &str, inputs: &[&[&str]]) -> String {
    open.index.save(&query(op, inputs), None).unwrap().to_string()
}

fn probe(open: &Open, op: &str, inputs: &[&[&str]]) -> Vec<String> {
    open.index.probe(&query(op, inputs)).unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn a_root_is_named_by_operation_and_output() {
    let space = Space::new();
    let open = space.open();
    assert_eq!(probe(&open, "op", &[]), Vec::<String>::new());
    let name = save(&open, "op", &[]);
    assert_eq!(name, Digest::of(format!("{}@0", Digest::of("op"))).to_string());
    assert_eq!(probe(&open, "op", &[]), vec![name.clone()]);
    let other = KeyQuery { output: 1, ..root_query("op") };
    assert_eq!(open.index.probe(&other).unwrap(), vec![]);
    assert_eq!(save(&open, "op", &[]), name);
}

#[test]
fn every_input_must_match_and_any_alternative_does() {
    let space = Space::new();
    let open = space.open();
    let key = save(&open, "op", &[&["a", "a2/x"], &["b"]]);
    let hits: [&[&[&str]]; 5] = [
        &[&["a"], &["b"]],
        &[&["a2/x"], &["b"]],
        &[&["no", "a"], &["b"]],
        &[&["a", "a2/x"], &["b", "no"]],
        &[&["a", "a"], &["b"]],
    ];
    for inputs in hits {
        assert_eq!(probe(&open, "op", inputs), vec![key.clone()], "{inputs:?}");
    }
    let misses: [&[&[&str]]; 7] = [
        &[&["a"], &["no"]],
        &[&["no"], &["b"]],
        &[&["a2"], &["b"]],
        &[&["a2/y"], &["b"]],
        &[&["a/x"], &["b"]],
        &[&["b"], &["a"]],
        &[&["a"], &["b"], &["a"]],
    ];
    for inputs in misses {
        assert_eq!(probe(&open, "op", inputs), Vec::<String>::new(), "{inputs:?}");
    }
    assert_eq!(probe(&open, "other", &[&["a"], &["b"]]), Vec::<String>::new());
    let other_output = KeyQuery { output: 1, ..query("op", &[&["a"], &["b"]]) };
    assert_eq!(open.index.probe(&other_output).unwrap(), vec![]);
}

#[test]
fn alternatives_are_learned_for_each_input_by_itself() {
    let space = Space::new();
    let open = space.open();
    let key = save(&open, "op", &[&["a"], &["b"]]);
    assert_eq!(save(&open, "op", &[&["a", "slow-a"], &["b", "slow-b"]]), key);
    assert_eq!(probe(&open, "op", &[&["slow-a"], &["b"]]), vec![key.clone()]);
    assert_eq!(probe(&open, "op", &[&["slow-a"], &["slow-b"]]), vec![key.clone()]);
    // Found by the content of one input and the definition of the other, it still is no second key.
    assert_eq!(save(&open, "op", &[&["new-a", "slow-a"], &["b"]]), key);
    assert_eq!(probe(&open, "op", &[&["new-a"], &["slow-b"]]), [key]);
}

#[test]
fn a_miss_is_a_new_key_and_both_may_match_later() {
    let space = Space::new();
    let open = space.open();
    let first = save(&open, "op", &[&["a"]]);
    let second = save(&open, "op", &[&["b"]]);
    assert_ne!(first, second);
    assert_eq!(probe(&open, "op", &[&["b", "a"]]), [first.clone(), second.clone()], "the oldest first");
    assert_eq!(save(&open, "op", &[&["b", "a"]]), first);
    assert_eq!(probe(&open, "op", &[&["b"]]), [first, second]);
}

#[test]
fn a_key_is_named_by_what_made_it() {
    let (one, two) = (Space::new(), Space::new());
    let name = save(&one.open(), "op", &[&["a", "b/x"], &["c"]]);
    assert_eq!(save(&two.open(), "op", &[&["b/x", "a", "a"], &["c"]]), name);
    assert_ne!(save(&two.open(), "op", &[&["b/x"], &["a"], &["c"]]), name);
}

#[test]
fn unknown_alternatives_become_roots() {
    let space = Space::new();
    let open = space.open();
    let content = root_query("content");
    let name = KeyId::root(&Digest::of(format!("{}@0", content.op)));
    assert_eq!(open.index.probe(&content).unwrap(), vec![]);
    save(&open, "op", &[&[&name.to_string()]]);
    assert_eq!(open.index.probe(&content).unwrap(), [name]);
}

#[test]
fn chains_are_found_from_the_bottom_up() {
    let space = Space::new();
    let open = space.open();
    let mut key = save(&open, "from", &[]);
    for step in ["one", "two", "three"] {
        let next = save(&open, step, &[&[&key]]);
        assert_eq!(probe(&open, step, &[&[&key]]), vec![next.clone()]);
        key = next;
    }
    let links = open.index.links_to(&KeyId(key.as_str().into())).unwrap();
    let found: Vec<_> = links.iter().map(|link| (link.op, link.input, link.selector)).collect();
    assert_eq!(found, [(Digest::of("three"), 0, None)]);
}

#[test]
fn links_tell_how_a_key_is_reached() {
    let space = Space::new();
    let open = space.open();
    let key = save(&open, "op", &[&["b", "a/x"], &["c"]]);
    let links = open.index.links_to(&KeyId(key.as_str().into())).unwrap();
    let found: Vec<_> =
        links.iter().map(|it| (it.input, it.source.to_string(), it.selector.is_some())).collect();
    assert_eq!(found, [(0, "a".into(), true), (0, "b".into(), false), (1, "c".to_string(), false)]);
    assert_eq!(open.index.links_to(&KeyId("no".into())).unwrap(), vec![]);
}

#[test]
fn an_input_without_alternatives_is_refused() {
    let space = Space::new();
    let open = space.open();
    for bad in [query("op", &[&[]]), query("op", &[&["a"], &[]])] {
        assert_eq!(open.index.probe(&bad).unwrap_err().kind, ErrorKind::Internal);
        assert_eq!(open.index.save(&bad, None).unwrap_err().kind, ErrorKind::Internal);
    }
    assert_eq!(probe(&open, "op", &[&["a"]]), Vec::<String>::new());
}

/// The index against the algebra written down naively, on many small random graphs.
#[test]
fn it_agrees_with_a_model() {
    use std::collections::BTreeSet;
    type Input = Vec<BTreeSet<String>>;
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let space = Space::new();
    let open = space.open();
    let mut model: Vec<(String, u64, Input)> = vec![];
    for _ in 0..300 {
        let op = random(2);
        let inputs: Vec<Vec<String>> = (0..=random(2))
            .map(|_| {
                (0..=random(2)).map(|_| format!("k{}{}", random(4), ["", "/s"][random(2) as usize])).collect()
            })
            .collect();
        let matches = |known: &Input| {
            known.len() >= inputs.len()
                && inputs.iter().zip(known).all(|(wanted, known)| wanted.iter().any(|it| known.contains(it)))
        };
        let expected: BTreeSet<String> = model
            .iter()
            .filter(|(_, of, known)| *of == op && matches(known))
            .map(|(key, ..)| key.clone())
            .collect();
        let borrowed: Vec<Vec<&str>> =
            inputs.iter().map(|input| input.iter().map(String::as_str).collect()).collect();
        let slices: Vec<&[&str]> = borrowed.iter().map(Vec::as_slice).collect();
        // Operations with another number of inputs are other operations, as in builds.
        let name = format!("op{op}-{}", inputs.len());
        let found = probe(&open, &name, &slices);
        let of_arity: BTreeSet<String> = model
            .iter()
            .filter(|(key, _, known)| expected.contains(key) && known.len() == inputs.len())
            .map(|(key, ..)| key.clone())
            .collect();
        assert_eq!(found.iter().cloned().collect::<BTreeSet<_>>(), of_arity);
        let key = save(&open, &name, &slices);
        assert_eq!(found.first().unwrap_or(&key), &key);
        let at = model.iter().position(|(known, ..)| *known == key).unwrap_or_else(|| {
            model.push((key, op, vec![BTreeSet::new(); inputs.len()]));
            model.len() - 1
        });
        for (known, new) in model[at].2.iter_mut().zip(inputs) {
            known.extend(new);
        }
    }
}
