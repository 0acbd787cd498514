//! Reading what engines print: how many steps they call cached. Pure.

use std::collections::BTreeMap;

/// Whose words a log is written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// `#5 [2/4] RUN make` and `#5 CACHED`.
    BuildKit,
    /// `STEP 2/4: RUN make` and `--> Using cache 0123…`.
    Buildah,
}

/// How many RUN, COPY and WORKDIR steps the log calls cached. Base images do not count: some engines call an image that
/// was pulled before cached.
pub(crate) fn cached_steps(dialect: Dialect, log: &str) -> usize {
    match dialect {
        Dialect::Buildah => log.lines().filter(|line| line.contains("--> Using cache")).count(),
        Dialect::BuildKit => {
            let mut names: BTreeMap<&str, &str> = BTreeMap::new();
            let mut cached = 0;
            for line in log.lines() {
                let Some((number, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' '))
                else {
                    continue;
                };
                if rest.starts_with('[') {
                    names.insert(number, rest);
                } else if rest.trim_end() == "CACHED" {
                    cached += usize::from(names.get(number).is_some_and(|name| is_step(name)));
                }
            }
            cached
        }
    }
}

/// Whether `[build 2/4] RUN make` is an instruction that makes something.
fn is_step(name: &str) -> bool {
    let text = name.split_once("] ").map_or("", |(_, text)| text);
    ["RUN ", "COPY ", "ADD ", "WORKDIR "].iter().any(|word| text.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildkit_logs() {
        let log = "\
#1 [internal] load build definition from Dockerfile
#1 DONE 0.0s

#4 [tools 1/3] FROM 127.0.0.1:1/bench/busybox@sha256:00
#4 CACHED

#5 [tools 2/3] WORKDIR /tools
#5 sha256:0123
#5 CACHED

#6 [tools 3/3] RUN echo CACHED && echo ran-$((40+2))
#6 0.100 ran-42
#6 0.101 CACHED
#6 DONE 0.1s

#7 [build 1/1] COPY src /src
#7 CACHED
";
        assert_eq!(cached_steps(Dialect::BuildKit, log), 2);
    }

    #[test]
    fn buildah_logs() {
        let log = "[1/2] STEP 1/2: FROM x\n[1/2] STEP 2/2: RUN a\n--> Using cache 0123\n--> 0123\nSTEP 2/2: RUN b\n";
        assert_eq!(cached_steps(Dialect::Buildah, log), 1);
    }
}
