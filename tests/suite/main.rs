//! Whole builds through the public surfaces, and rules about the source tree. One binary, so that it links once.

mod buildkit;
mod cache;
mod cache_mounts;
mod cache_random;
mod caches;
mod cli;
mod command;
mod common;
mod contexts;
mod copy;
mod crash;
mod devices;
mod errors;
mod errors_doc;
mod export;
mod flight;
mod imports;
mod repro;
mod rootless;
mod sandbox;
mod tidy;
mod why;
