//! The one binary: front door, executors, and the commands around them.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use prompt_manager::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // It fails only when a provider was installed before, and nothing ran before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read the sentence; the exit code remains.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
