//! Our own commands: what CI runs and what a laptop runs are the same thing.
//!
//! *Takes* a command line: `cargo xtask test`, `bench`, `chaos`, `sim`, `traces`, `vectors`.
//! *Gives* the children's output as it comes, then one plain last line and an exit code.
//! *Owns* the table of tools that the tests need (`tools.rs`) and the order of the steps (`test.rs`).
//! *Never* skips: what cannot run is a failure by name. It imports no crate of ours, since it compiles first.

#![expect(clippy::print_stdout, reason = "these commands are for a terminal")]

mod bench;
mod browser;
mod chaos;
mod child;
mod fuzz;
mod libtest;
mod report;
mod sim;
mod test;
mod tools;
mod traces;
mod typescript;
mod vectors;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Commands for working on Greenroom.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs what the tests need, then runs every test, lint and fuzz target.
    Test(test::Arguments),
    /// Builds in release and runs a benchmark: all of them, or NAME.
    Bench(bench::Arguments),
    /// Builds in release and hurts a cluster of real processes under load.
    Chaos(chaos::Arguments),
    /// Builds in release and plays seeds of the simulator.
    Sim(sim::Arguments),
    /// Draws the traces of `docs/tracing.md` anew, as a real collector gets them.
    Traces,
    /// Writes the protocol's test vectors and recorded conversations anew.
    Vectors(vectors::Arguments),
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let workspace = Workspace::find();
    match arguments.command {
        Task::Test(arguments) => test::run(&workspace, &arguments),
        Task::Bench(arguments) => bench::run(&workspace, &arguments),
        Task::Chaos(arguments) => chaos::run(&workspace, &arguments),
        Task::Sim(arguments) => sim::run(&workspace, &arguments),
        Task::Traces => traces::run(&workspace),
        Task::Vectors(arguments) => vectors::run(&workspace, &arguments),
    }
}
