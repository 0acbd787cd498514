//! Times in HTTP headers.

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`; `None` for other forms.
pub(crate) fn parse_http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.trim().split_once(", ")?;
    let parts: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts.as_slice() else { return None };
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit()) && text.len() <= 4;
        text.parse::<i64>().ok().filter(|_| digits)
    };
    let (day, year) = (number(day)?, number(year)?);
    let month = i64::try_from(MONTHS.iter().position(|name| name == month)?).ok()? + 1;
    let time: Vec<i64> = time.split(':').map(number).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = time.as_slice() else { return None };
    let valid = (1..=31).contains(&day) && *hours < 24 && *minutes < 60 && *seconds <= 60;
    valid.then(|| days_since_1970(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

/// Days of the proleptic Gregorian calendar. Years are counted from March, so the leap day is their last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (text, want) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Thu, 29 Feb 2024 12:00:00 GMT", Some(1_709_208_000)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 PST", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(parse_http_date(text), want, "{text}");
        }
    }
}
