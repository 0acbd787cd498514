//! `rbuild-bench`: compares container build engines on generated workloads, and times single parts of rbuild. A client of
//! the command line and of the pure crates' public surface; printing is its job.

mod base;
mod check;
mod compare;
mod context;
mod engines;
mod error;
mod measure;
#[path = "../micro/mod.rs"]
mod micro;
mod registry;
mod report;
mod stop;
mod system;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use compare::{Options, compare};
use engines::{EngineOptions, Network};
use error::{BenchError, Result};
use workload::{Scale, Workload};

#[derive(Parser)]
#[command(name = "rbuild-bench", about = "Compare container build engines; time parts of rbuild")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run workloads on several engines in turns and compare
    Compare(Box<CompareArgs>),
    /// Time parts of rbuild inside this process
    Micro(MicroArgs),
    /// List workloads, engines and micro-benchmarks
    List,
}

#[derive(Args)]
struct CompareArgs {
    /// Engines [default: all that are found]
    #[arg(long, value_delimiter = ',')]
    engines: Option<Vec<String>>,
    /// Workloads [default: all]
    #[arg(long, value_delimiter = ',', value_parser = Workload::parse)]
    workloads: Option<Vec<Workload>>,
    /// Samples of each workload and engine
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: u64,
    /// Decides all contents
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Tiny sizes: only to see that everything works
    #[arg(long)]
    quick: bool,
    /// Network of RUN steps
    #[arg(long, value_enum, default_value_t = Network::None)]
    network: Network,
    /// The rbuild to measure [default: beside this program, else in PATH]
    #[arg(long, value_name = "PATH")]
    rbuild: Option<PathBuf>,
    /// Address of a buildkitd that runs, such as unix:///run/buildkit/buildkitd.sock
    #[arg(long, value_name = "ADDR")]
    buildctl_addr: Option<String>,
    /// Address of a dockerd that runs [default: one is started]
    #[arg(long, value_name = "ADDR")]
    docker_host: Option<String>,
    /// The given daemons may be emptied: all their images and caches
    #[arg(long)]
    allow_prune: bool,
    /// A tar archive of a Debian rootfs [default: made by mmdebstrap]
    #[arg(long, value_name = "FILE")]
    debian_tar: Option<PathBuf>,
    /// Where to work; base images are kept there [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Append every sample to this file as a line of JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave stores and logs
    #[arg(long)]
    keep: bool,
    /// The longest that one command may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
}

#[derive(Args)]
struct MicroArgs {
    /// Only those with this in their name
    filter: Option<String>,
    /// Tiny sizes: only to see that everything works
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Compare(args) => run_compare(*args),
        Command::Micro(args) => {
            micro::run(args.filter.as_deref(), args.quick).map_err(BenchError::Other).map(|()| true)
        }
        Command::List => {
            list();
            Ok(true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    println!("workloads");
    for workload in Workload::ALL {
        println!("  {:<9} {}", workload.name(), workload.about());
    }
    println!("engines\n  {}", engines::NAMES.join(" "));
    println!("micro-benchmarks");
    for name in micro::NAMES {
        println!("  {name}");
    }
}

fn run_compare(args: CompareArgs) -> Result<bool> {
    let cannot = |doing: &str| {
        let doing = doing.to_owned();
        move |source| BenchError::Io { doing, source }
    };
    stop::listen().map_err(cannot("cannot listen for signals"))?;
    // Not /tmp, which is often in memory: engines are measured on a disk.
    let temporary = match args.dir {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("rbuild-bench-")
                .disable_cleanup(args.keep)
                .tempdir_in("/var/tmp")
                .map_err(cannot("cannot create a directory in /var/tmp"))?,
        ),
    };
    let scratch = match (&args.dir, &temporary) {
        (Some(dir), _) => std::path::absolute(dir).map_err(cannot("cannot use the directory"))?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => PathBuf::from("."),
    };
    if args.keep {
        println!("{:<16} {}", "directory", scratch.display());
    }
    let mut workloads = args.workloads.unwrap_or_else(|| Workload::ALL.to_vec());
    workloads.sort();
    workloads.dedup();
    compare(&Options {
        engines: args.engines,
        workloads,
        runs: args.runs.max(1),
        seed: args.seed,
        scale: if args.quick { Scale::QUICK } else { Scale::FULL },
        network: args.network,
        engine: EngineOptions {
            rbuild: args.rbuild,
            buildctl_addr: args.buildctl_addr,
            docker_host: args.docker_host,
            allow_prune: args.allow_prune,
        },
        debian_tar: args.debian_tar,
        scratch,
        keep: args.keep,
        json: args.json,
        timeout: Duration::from_secs(args.timeout),
    })
}
