//! `test_data/words.txt`: a table of words and what they become.

use std::collections::BTreeMap;

use super::test_data;
use crate::{expand_heredoc, expand_step_name, expand_word, expand_words};

#[test]
fn table() {
    let text = std::fs::read_to_string(test_data().join("words.txt")).unwrap();
    let mut section = "";
    let mut wrong = Vec::new();
    let mut count = 0;
    for (i, line) in text.lines().enumerate() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            continue;
        }
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        let columns: Vec<&str> = line.split(" | ").map(str::trim).collect();
        let [input, env, expected] = columns.as_slice() else { panic!("line {}: three columns", i + 1) };
        let actual = expand(section, &plain(input), env);
        if actual != *expected {
            wrong.push(format!("line {}: {input}\n  expected: {expected}\n  actual:   {actual}", i + 1));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 150, "{count}");
}

/// `⏎` for a line break, `␣` for a blank and `∅` for nothing, which a table cannot show.
fn plain(text: &str) -> String {
    text.replace('⏎', "\n").replace('␣', " ").replace('∅', "").replace('⇥', "\t")
}

fn shown(text: &str) -> String {
    let text = text.replace('\n', "⏎").replace('\t', "⇥");
    let trimmed = text.trim_matches(' ');
    if trimmed.is_empty() && !text.is_empty() {
        return text.replace(' ', "␣");
    }
    let (before, after) = (text.len() - text.trim_start().len(), text.len() - text.trim_end().len());
    let text = format!("{}{trimmed}{}", "␣".repeat(before), "␣".repeat(after));
    if text.is_empty() { "∅".to_owned() } else { text }
}

fn expand(section: &str, input: &str, env: &str) -> String {
    let variables: BTreeMap<String, String> = env
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (plain(name), plain(value)))
        .collect();
    let env = |name: &str| variables.get(name).cloned();
    let result = match section {
        "word" => expand_word(input, '\\', &env).map(|e| show_expanded(&e)),
        "word escape=`" => expand_word(input, '`', &env).map(|e| show_expanded(&e)),
        "heredoc" => expand_heredoc(input, &env).map(|e| show_expanded(&e)),
        "name" => expand_step_name(input, '\\', &env).map(|text| shown(&text)),
        "words" => expand_words(input, '\\', &env)
            .map(|words| format!("({})", words.iter().map(|w| shown(w)).collect::<Vec<_>>().join(") ("))),
        other => panic!("no section {other}"),
    };
    result.unwrap_or_else(|error| format!("error {}: {error}", error.offset))
}

fn show_expanded(expanded: &crate::Expanded) -> String {
    let mut text = shown(&expanded.value);
    if !expanded.unmatched.is_empty() {
        text += &format!("   -{}", expanded.unmatched.join(" -"));
    }
    text
}

#[test]
fn names_are_told_once_in_order() {
    let expanded = expand_word("$b ${a:-$c} $b $d $a", '\\', &|name| (name > "b").then(String::new)).unwrap();
    assert_eq!(expanded.used, ["c", "d"]);
    assert_eq!(expanded.unmatched, ["b", "a"]);
}

#[test]
fn depth_and_length_are_bounded() {
    let none = |_: &str| None;
    let nested = |n: usize| "${a:-".repeat(n) + "x" + &"}".repeat(n);
    assert_eq!(expand_word(&nested(200), '\\', &none).unwrap().value, "x");
    let error = expand_word(&nested(100_000), '\\', &none).unwrap_err();
    assert_eq!(error.message, "substitutions are nested deeper than 200");
    let error = expand_word(&"${a:-".repeat(100_000), '\\', &none).unwrap_err();
    assert_eq!(error.message, "substitutions are nested deeper than 200");
    let error = expand_word(&"$a".repeat(100), '\\', &|_| Some("x".repeat(1 << 20))).unwrap_err();
    assert_eq!(error.message, "the expansion is longer than 16777216 bytes");
    let error = expand_word("\"$a$a\"", '\\', &|_| Some("x".repeat(9 << 20))).unwrap_err();
    assert_eq!(error.offset, 3);
    let names: String = (0..20_000).map(|i| format!("$a{i}b")).collect();
    assert_eq!(expand_word(&names, '\\', &none).unwrap().unmatched.len(), 20_000);
}
