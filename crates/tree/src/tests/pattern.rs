//! Ignore patterns: the known answers of moby's matcher, the incremental form against the plain one, and that
//! leaving directories out never changes an answer.

use proptest::prelude::*;

use crate::{MatchInfo, PatternMatcher};

/// Known answers: patterns, path, whether the pattern itself matches (`exact`), only by a parent (`parent`), not.
fn cases() -> Vec<(Vec<&'static str>, &'static str, bool)> {
    include_str!("../../test_data/patterns.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .map(|line| {
            let mut fields = line.split('\t');
            let want = fields.next().unwrap() == "match";
            let path = fields.next().unwrap();
            (fields.collect(), path, want)
        })
        .collect()
}

/// Walks down to `path` as a tree walk would.
fn incremental(matcher: &PatternMatcher, path: &str) -> bool {
    let mut info = MatchInfo::default();
    for (i, _) in path.match_indices('/').filter(|(i, _)| *i > 0) {
        info = matcher.matches_in(&path[..i], &info).1;
    }
    matcher.matches_in(path, &info).0
}

#[test]
fn known_answers() {
    let cases = cases();
    assert!(cases.len() > 100);
    for (patterns, path, want) in cases {
        let matcher = PatternMatcher::new(&patterns).unwrap();
        assert_eq!(matcher.matches(path), want, "{patterns:?} {path}");
        assert_eq!(incremental(&matcher, path), want, "incremental {patterns:?} {path}");
        assert_eq!(matcher.matches_in(path, &MatchInfo::default()).0, want, "no context {patterns:?} {path}");
    }
}

#[test]
fn bad_patterns() {
    for pattern in ["!", "[", "a[", "[]a]", "[x-]", "\\", "a\\x", "[[:nope:]]", "[z-a]"] {
        assert!(PatternMatcher::new(&[pattern]).is_err(), "{pattern}");
    }
    let long = "*a".repeat(5000);
    assert!(PatternMatcher::new(&[long]).is_err());
    assert!(PatternMatcher::new(&["", " "]).unwrap().is_empty());
}

#[test]
fn names_that_are_no_text() {
    let matcher = PatternMatcher::new(&["a?b", "*.o", "**/x[^y]"]).unwrap();
    assert!(matcher.matches(b"a\xffb"));
    assert!(!matcher.matches(b"a\xff\xffb"));
    assert!(matcher.matches(b"\xff.o"));
    assert!(matcher.matches(b"\xfe/x\xff"));
}

#[test]
fn many_stars_stay_cheap() {
    let matcher =
        PatternMatcher::new(&["*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*ab", "**/**/**/**/**/**/**/**/*/q"])
            .unwrap();
    assert!(!matcher.matches("a".repeat(2000)));
    assert!(!matcher.matches("a/".repeat(500)));
}

#[test]
fn directories_can_be_left_out() {
    let matcher = |patterns: &[&str]| PatternMatcher::new(patterns).unwrap();
    let skips = |patterns: &[&str], dir: &str| {
        let matcher = matcher(patterns);
        let (matched, info) = matcher.matches_in(dir, &MatchInfo::default());
        matched && !matcher.may_take_back_below(dir, &info)
    };
    assert!(skips(&["node_modules"], "node_modules"));
    assert!(skips(&["**/node_modules", "!README.md"], "a/node_modules"));
    assert!(skips(&["!src", "**/node_modules"], "src/node_modules"));
    assert!(skips(&["target", "!*.md"], "target"));
    assert!(!skips(&["target", "!target/keep"], "target"));
    assert!(!skips(&["target", "!**/keep"], "target"));
    assert!(!skips(&["target", "!t*/keep"], "target"));
    assert!(skips(&["target", "!t*/keep"], "target/x"));
    assert!(!skips(&["a", "!a/b/**"], "a"));
    assert!(!skips(&["a", "!a/b/**"], "a/b"));
    assert!(skips(&["a", "!a/b/**"], "a/c"));
    let include = matcher(&["src/*.rs", "docs/**"]);
    assert!(include.may_match_below("src") && include.may_match_below("docs") && include.may_match_below(""));
    assert!(!include.may_match_below("target") && !include.may_match_below("src/deep"));
}

fn pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("a"),
        Just("b"),
        Just("*"),
        Just("**"),
        Just("?"),
        Just("a*"),
        Just("[ab]"),
        Just("[^a]")
    ];
    (any::<bool>(), prop::collection::vec(part, 1..4))
        .prop_map(|(negated, parts)| format!("{}{}", if negated { "!" } else { "" }, parts.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn leaving_out_is_safe(
        patterns in prop::collection::vec(pattern(), 1..4),
        parts in prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("ab"), Just("c")], 1..5),
    ) {
        let matcher = PatternMatcher::new(&patterns).unwrap();
        let path = parts.join("/");
        let want = matcher.matches(&path);
        // A walk that takes what does not match, as for a context.
        let (mut info, mut skipped) = (MatchInfo::default(), false);
        for (i, _) in path.match_indices('/') {
            let (matched, next) = matcher.matches_in(&path[..i], &info);
            skipped |= matched && !matcher.may_take_back_below(&path[..i], &next);
            if !want { continue; }
            info = next;
        }
        prop_assert!(!skipped || want, "left out although it does not match");
        if want {
            // A walk that takes what matches, as for include patterns.
            for (i, _) in path.match_indices('/') {
                prop_assert!(matcher.may_match_below(&path[..i]), "not entered although something matches");
            }
        }
    }

    #[test]
    fn patterns_never_panic(pattern in "[!ab*?/\\[\\]\\\\^.(){}|$:-]{0,12}", path in "[ab/*.\\[\\]\\\\^-]{0,10}") {
        if let Ok(matcher) = PatternMatcher::new(&[pattern]) {
            let _ = matcher.matches(&path);
            let _ = matcher.may_match_below(&path);
        }
    }
}

#[test]
fn paths_as_they_are_written() {
    for (pattern, paths) in [
        ("*", ". /a / a a/b /a/b .."),
        ("**", ". /a / a a/b"),
        (".*", ". .. .x"),
        ("?", ". a a/b"),
        (".", "."),
        ("/", "/ /a"),
        ("a", "a a/b"),
        ("**/a", "a a/b /a /a/b"),
    ] {
        let matcher = PatternMatcher::new(&[pattern]).unwrap();
        for path in [".", "..", "/", "a", "/a", "a/b", "/a/b", ".x"] {
            let want =
                paths.split(' ').any(|it| it == path) || pattern == "**" || pattern == "*" && path == ".x";
            assert_eq!(matcher.which_of_any(path), want.then_some(0), "{pattern} {path}");
        }
    }
}
