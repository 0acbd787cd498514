//! "Did you mean".

/// The candidate that differs least from `word` (case aside), when the difference is small enough to be a slip:
/// at most a third of its length, at least one edit. Ties go to the first.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = folded(word);
    let mut limit = (lower.len() / 3).max(1);
    let mut best = None;
    let mut rows = Rows::default();
    for candidate in candidates {
        // Every character that one has more is an edit; most candidates are told apart by that alone.
        if candidate.len().min(LONGEST) > 4 * (lower.len() + limit) {
            continue;
        }
        let other = folded(candidate);
        if other.len().abs_diff(lower.len()) > limit {
            continue;
        }
        let distance = rows.distance(&lower, &other);
        if distance <= limit && best.is_none_or(|(least, _)| distance < least) {
            (best, limit) = (Some((distance, candidate)), distance);
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// What is longer is compared by its beginning.
const LONGEST: usize = 200;

fn folded(word: &str) -> Vec<char> {
    word.chars().flat_map(char::to_lowercase).take(LONGEST).collect()
}

/// Three lines of the table, kept from one comparison to the next.
#[derive(Default)]
struct Rows {
    before: Vec<usize>,
    last: Vec<usize>,
    row: Vec<usize>,
}

impl Rows {
    /// Optimal string alignment distance: edits and swaps of neighbours.
    fn distance(&mut self, a: &[char], b: &[char]) -> usize {
        let Self { before, last, row } = self;
        last.clear();
        last.extend(0..=b.len());
        for i in 1..=a.len() {
            row.clear();
            row.push(i);
            for j in 1..=b.len() {
                let mut best =
                    (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + usize::from(a[i - 1] != b[j - 1]));
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(before[j - 2] + 1);
                }
                row.push(best);
            }
            std::mem::swap(before, last);
            std::mem::swap(last, row);
        }
        last.get(b.len()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_nothing_else() {
        let words = ["FROM", "COPY", "RUN", "ENTRYPOINT"];
        assert_eq!(nearest("CPOY", words), Some("COPY"));
        assert_eq!(nearest("entrypiont", words), Some("ENTRYPOINT"));
        assert_eq!(nearest("RUM", words), Some("RUN"));
        assert_eq!(nearest("HELLO", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest("ab", ["ax", "ab", "abc"]), Some("ab"));
        assert_eq!(nearest("ab", ["ax", "xb"]), Some("ax"));
        assert_eq!(nearest("ÉTAPE", ["etape", "étape"]), Some("étape"));
        assert_eq!(nearest(&"x".repeat(10_000), [&*"y".repeat(10_000), "x"]), None);
    }
}
