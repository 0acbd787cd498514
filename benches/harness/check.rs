//! Whether a sample's output proves that the engine did what it was asked. Pure.

use crate::engines::{Dialect, cached_steps};
use crate::workload::{Expect, MARKER};

/// What is wrong with an output, if anything.
pub(crate) fn check(expect: &Expect, dialect: Dialect, log: &str) -> Option<String> {
    let ran = log.matches(MARKER).count();
    if ran != expect.ran {
        return Some(format!("{ran} RUN steps ran instead of {}", expect.ran));
    }
    let cached = cached_steps(dialect, log);
    if cached < expect.cached_min {
        return Some(format!("only {cached} steps were cached, expected {} or more", expect.cached_min));
    }
    if cached > expect.cached_max {
        return Some(format!("{cached} steps were cached, expected at most {}", expect.cached_max));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_prove_what_ran() {
        let log = "#1 [1/2] RUN echo ran-$((40+2))\n#1 0.1 ran-42\n#1 DONE\n#2 [2/2] RUN echo ran-$((40+2))\n#2 CACHED\n";
        let with = |ran, cached_min, cached_max| {
            check(&Expect { ran, cached_min, cached_max }, Dialect::BuildKit, log)
        };
        assert_eq!(with(1, 1, 1), None);
        assert!(with(2, 0, 9).is_some_and(|text| text.contains("1 RUN steps ran instead of 2")));
        assert!(with(1, 2, 9).is_some_and(|text| text.contains("only 1")));
        assert!(with(1, 0, 0).is_some_and(|text| text.contains("at most 0")));
    }
}
