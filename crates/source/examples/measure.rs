//! Measures the local context: `measure <directory> <state directory>` walks it and hashes what is not remembered.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for measuring")]

use std::time::Instant;

use rbuild_graph::LocalSource;
use rbuild_ports::{CancelToken, Sources};
use rbuild_source::{HostSources, Registry, RegistryOptions, SourceOptions};
use rbuild_tree::RelPath;

fn main() {
    let mut args = std::env::args().skip(1);
    let (dir, state) = (args.next().unwrap(), args.next().unwrap());
    let rounds: usize = args.next().map_or(5, |n| n.parse().unwrap());
    for _ in 0..rounds {
        let start = Instant::now();
        let mut options =
            SourceOptions::new(Some(state.clone().into()), Registry::new(RegistryOptions::anonymous()));
        options.contexts.insert("context".to_owned(), dir.clone().into());
        let sources = HostSources::new(options);
        let source = LocalSource {
            name: "context".to_owned(),
            include: vec![],
            exclude: vec![],
            follow_paths: vec![],
        };
        let view = sources.local(&source, &CancelToken::new()).unwrap();
        let mut todo = vec![RelPath::root()];
        let mut files = Vec::new();
        let top = view.children(&RelPath::root()).unwrap();
        let walked = start.elapsed();
        drop(top);
        while let Some(dir) = todo.pop() {
            for name in view.children(&dir).unwrap() {
                let child = dir.child(&name).unwrap();
                let entry = view.lookup(&child).unwrap().unwrap();
                if entry.is_dir() { todo.push(child) } else { files.push(child) }
            }
        }
        let listed = start.elapsed();
        let digests = view.entry_digests(&files).unwrap();
        let done = start.elapsed();
        drop(view);
        drop(sources);
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        println!(
            "{} files: walk {:.1} ms, listed {:.1} ms, digests {:.1} ms, dropped {:.1} ms",
            digests.len(),
            ms(walked),
            ms(listed),
            ms(done),
            ms(start.elapsed())
        );
    }
}
