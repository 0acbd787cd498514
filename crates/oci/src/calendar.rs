//! Days and dates: the times of configs and annotations are RFC 3339 texts in UTC.

const DAY: i64 = 86_400;

/// Days since 1970 of a date of the Gregorian calendar; years begin in March so that leap days come last.
#[must_use]
pub fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Seconds since 1970 as `2026-11-23T20:35:42`, in UTC; zone and fraction are the caller's.
#[must_use]
pub fn date_time(seconds: i64) -> String {
    let (year, month, day) = date_of(seconds.div_euclid(DAY));
    let rest = seconds.rem_euclid(DAY);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_agree() {
        for (year, month, day, text) in [
            (1970, 1, 1, "1970-01-01T00:00:00"),
            (1969, 12, 31, "1969-12-31T00:00:00"),
            (2000, 2, 29, "2000-02-29T00:00:00"),
            (2100, 3, 1, "2100-03-01T00:00:00"),
            (1, 1, 1, "0001-01-01T00:00:00"),
        ] {
            assert_eq!(date_time(days_of(year, month, day) * DAY), text);
        }
        assert_eq!(date_time(-1), "1969-12-31T23:59:59");
    }
}
