//! Builds an image inside another program and prints what happens.
//!
//! ```sh
//! cargo run -p rbuild --example build_in_process -- STORE CONTEXT
//! ```
//!
//! `STORE` is a directory for cache and layers, `CONTEXT` one with a Dockerfile. The result lies in the store as
//! `localhost/example:latest`; a second run is answered from the cache.

use std::process::ExitCode;
use std::sync::Arc;

use rbuild::{
    BuildEvent, BuildRequest, Builder, CancelToken, OutputStreams, RenderOptions, Store, StoreOptions, render,
};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]
fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(store), Some(context)) = (args.next(), args.next()) else {
        eprintln!("usage: build_in_process STORE CONTEXT");
        return ExitCode::from(2);
    };
    // Ordinary users become root of a user namespace; this must come before any thread is started.
    let result = rbuild::enter_user_namespace().map_err(rbuild::BuildError::from).and_then(|rootless| {
        let mut options = StoreOptions::new(store);
        options.rootless = rootless;
        let builder = Builder::new(Store::open(options)?)?;
        let mut request = BuildRequest::new(context);
        request.tags = vec!["localhost/example".parse().map_err(|error| {
            rbuild::BuildError::from(rbuild::PortError::new(rbuild::ErrorKind::Invalid, format!("{error}")))
        })?];
        let events = |event: BuildEvent| match event {
            BuildEvent::Started { vertex, name, why, .. } => println!("#{} {name} (runs: {why:?})", vertex.0),
            BuildEvent::Cached { vertex, name } => println!("#{} {name} (cached)", vertex.0),
            BuildEvent::Log { vertex, data, .. } => {
                print!("#{} {}", vertex.0, String::from_utf8_lossy(&data))
            }
            BuildEvent::Finished { vertex, error: Some(error), .. } => {
                println!("#{} failed: {error}", vertex.0)
            }
            _ => {}
        };
        builder.build(&request, &OutputStreams::default(), Arc::new(events), &CancelToken::new())
    });
    match result {
        Ok(report) => {
            println!(
                "built {}: {} steps ran, {} were cached",
                report.exported.names.join(", "),
                report.ran,
                report.cached
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            for diagnostic in &error.diagnostics {
                eprintln!("{}", render(diagnostic, RenderOptions { color: false, width: 100 }));
            }
            ExitCode::FAILURE
        }
    }
}
