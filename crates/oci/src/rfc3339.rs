//! RFC 3339 as Go writes it: fractions without trailing zeros, `Z` for UTC. Days by arithmetic, no time zones.

use crate::calendar::{date_time, days_of};

const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// Nanoseconds since 1970 as text in UTC.
#[must_use]
pub fn format_nanos(nanos: i64) -> String {
    let (secs, fraction) = (nanos.div_euclid(NANOS), nanos.rem_euclid(NANOS));
    let mut out = date_time(secs);
    if fraction != 0 {
        let digits = format!("{fraction:09}");
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
    out.push('Z');
    out
}

/// Seconds since 1970 as text in UTC.
#[must_use]
pub fn format_secs(secs: i64) -> String {
    date_time(secs) + "Z"
}

/// Nanoseconds since 1970; `None` for what is no RFC 3339 time.
#[must_use]
pub fn parse(text: &str) -> Option<i128> {
    let (fields, rest) = text.split_at_checked(19)?;
    let bytes = fields.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = fields.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, want)| bytes.get(*at) != Some(want))
        || !matches!(bytes.get(10), Some(b'T' | b't'))
    {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            let (digits, zone) = rest.split_at(end);
            let nanos = format!("{digits:0<9}").get(..9)?.parse::<i64>().ok()?;
            (nanos, zone)
        }
        None => (0, rest),
    };
    let secs = days_of(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset(zone)?;
    Some(i128::from(secs) * i128::from(NANOS) + i128::from(fraction))
}

/// The same time as Go would write it after reading it; other texts as they are.
#[must_use]
pub fn normalize(text: &str) -> String {
    if parse(text).is_none() {
        return text.to_owned();
    }
    let (fields, rest) = text.split_at(19.min(text.len()));
    let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
    let (fraction, zone) = rest.split_at(end);
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    let zone = if offset(zone) == Some(0) { "Z" } else { zone };
    format!("{}{fraction}{zone}", fields.to_uppercase())
}

fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    Some(sign * (hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
            (951_782_400 * NANOS, "2000-02-29T00:00:00Z"),
            (1_704_067_199 * NANOS + 500_000_000, "2023-12-31T23:59:59.5Z"),
            (1_795_466_129_998_734_425, "2026-11-23T20:35:29.998734425Z"),
        ] {
            assert_eq!(format_nanos(nanos), text);
            assert_eq!(parse(text), Some(i128::from(nanos)), "{text}");
            assert_eq!(normalize(text), text);
        }
        assert_eq!(format_secs(1_704_067_200), "2024-01-01T00:00:00Z");
        for secs in (-80_000_000_000..80_000_000_000_i64).step_by(86_399 * 7777) {
            let text = format_secs(secs);
            if text.len() == 20 && !text.starts_with('-') {
                assert_eq!(parse(&text), Some(i128::from(secs) * i128::from(NANOS)), "{text}");
            }
        }
    }

    #[test]
    fn other_forms() {
        assert_eq!(parse("2024-01-01T02:00:00+02:00"), parse("2024-01-01T00:00:00Z"));
        assert_eq!(normalize("2024-01-01T02:00:00.500+02:00"), "2024-01-01T02:00:00.5+02:00");
        assert_eq!(normalize("2024-01-01T00:00:00.000000000+00:00"), "2024-01-01T00:00:00Z");
        for bad in [
            "",
            "now",
            "2024-13-01T00:00:00Z",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Zé",
            "2024-01-01T00:00:00+2",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
            assert_eq!(normalize(bad), bad);
        }
    }
}
