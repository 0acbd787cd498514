//! Text as Go prints and reads it. History entries and some option values are part of the image config, so they
//! must have the bytes that BuildKit's `%q`, `%v`, `time.Duration` and `strconv` give.

use std::fmt::Write as _;

use rbuild_oci::calendar;

/// `%q` of a string.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\0'..='\u{1f}' | '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c if printable(c) => out.push(c),
            c if u32::from(c) < 0x1_0000 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

fn printable(c: char) -> bool {
    // The standard library's own judgement; a combining mark is escaped only at the start of a text.
    c.is_ascii() || format!("a{c}").escape_debug().count() == 2
}

/// `%q` of a list: `["a" "b"]`.
pub(crate) fn quote_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quote(item)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `%v` of a list: `[a b]`.
pub(crate) fn plain_list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// `time.Duration`'s text of nanoseconds: `1h0m0s`, `1.5s`, `200ms`.
pub(crate) fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let n = nanoseconds.unsigned_abs();
    if n == 0 {
        return "0s".to_owned();
    }
    if n < 1_000 {
        return format!("{sign}{n}ns");
    }
    if n < 1_000_000 {
        return format!("{sign}{}µs", fraction(n, 1_000));
    }
    if n < 1_000_000_000 {
        return format!("{sign}{}ms", fraction(n, 1_000_000));
    }
    let seconds = n / 1_000_000_000;
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let rest = fraction(n % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{rest}s"),
        (0, _) => format!("{sign}{minutes}m{rest}s"),
        _ => format!("{sign}{hours}h{minutes}m{rest}s"),
    }
}

/// `n / unit` with as many decimals as it needs.
fn fraction(n: u64, unit: u64) -> String {
    let (whole, rest) = (n / unit, n % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    let decimals = format!("{rest:0digits$}");
    format!("{whole}.{}", decimals.trim_end_matches('0'))
}

/// `time.ParseDuration`: nanoseconds of `1h30m`, `1.5s`, `-200ms`, `0`.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && decimals.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(scale)?)?;
        let mut part = scale;
        for digit in decimals.bytes() {
            part /= 10;
            total += part * i128::from(digit.checked_sub(b'0')?);
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Docker's sizes in powers of 1024: `64m`, `1.5GiB`, `1048576`.
pub(crate) fn parse_size(text: &str) -> Option<i64> {
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let power = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 1,
        "m" | "mb" | "mi" | "mib" => 2,
        "g" | "gb" | "gi" | "gib" => 3,
        "t" | "tb" | "ti" | "tib" => 4,
        "p" | "pb" | "pi" | "pib" => 5,
        _ => return None,
    };
    let scale = 1i128 << (10 * power);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<i128>().ok()?.checked_mul(scale)?;
    if !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Twelve decimals are more than enough for sizes; the rest is cut off.
    let decimals = decimals.get(..12).unwrap_or(decimals);
    let digits = if decimals.is_empty() { 0 } else { decimals.parse::<i128>().ok()? };
    let part = digits * scale / 10i128.pow(u32::try_from(decimals.len()).ok()?);
    i64::try_from(whole.checked_add(part)?).ok()
}

/// Seconds since 1970 as `2026-11-23T20:35:42Z`.
pub(crate) fn rfc3339(seconds: i64) -> String {
    format!("{}Z", calendar::date_time(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_go_does() {
        assert_eq!(
            quote("a\"b\\c\n\t\u{1}\u{7f}é\u{301}\u{200b}\u{1F600}"),
            "\"a\\\"b\\\\c\\n\\t\\x01\\x7fé\u{301}\\u200b\u{1F600}\""
        );
        assert_eq!(quote_list(&["cat".to_owned(), "/a b".to_owned()]), r#"["cat" "/a b"]"#);
        assert_eq!(quote_list(&[]), "[]");
        assert_eq!(plain_list(&["/bin/bash".to_owned(), "-c".to_owned()]), "[/bin/bash -c]");
    }

    #[test]
    fn durations_are_printed_and_read_as_go_does() {
        for (text, nanoseconds, printed) in [
            ("30s", 30_000_000_000, "30s"),
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("5m", 300_000_000_000, "5m0s"),
            ("200ms", 200_000_000, "200ms"),
            ("1500us", 1_500_000, "1.5ms"),
            ("0", 0, "0s"),
            ("-1s", -1_000_000_000, "-1s"),
            ("1ns", 1, "1ns"),
            (".5s", 500_000_000, "500ms"),
        ] {
            assert_eq!(parse_duration(text), Some(nanoseconds), "{text}");
            assert_eq!(duration(nanoseconds), printed, "{text}");
        }
        for bad in ["", "3", "s", "1x", "-", "1s2", "9999999999h", "1..5s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, want) in
            [("1048576", 1 << 20), ("64m", 64 << 20), ("1.5GiB", 3 << 29), ("2 KB", 2048), ("0", 0)]
        {
            assert_eq!(parse_size(text), Some(want), "{text}");
        }
        for bad in ["", "m", "-1", "1x", "1.x"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_utc() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), want);
        }
    }
}
