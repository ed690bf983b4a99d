//! `paybridge demo`: the whole story, in front of an audience.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use super::postgres::{self, Postgres};
use super::stage::{self, Stage, prepare_database};
use super::story::{Narrator, STEPS, Scenery};
use crate::clock::Clock;
use crate::config;

/// `paybridge demo`: sets a stage up, plays the story, and succeeds only if every outcome is the one promised.
pub async fn run_demo(settings: config::Demo) -> Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("paybridge-demo-").tempdir()?;
    if let Some(file) = &settings.log_file {
        println!("The log is written to {}.", file.display());
    }
    println!("Starting a private Postgres …");
    let began = Instant::now();
    let postgres_folder = folder.path().join("postgres");
    let options = postgres::Options { programs: settings.postgres_programs, ..postgres::Options::default() };
    let postgres = tokio::task::spawn_blocking(move || Postgres::start(&postgres_folder, &options)).await??;
    let database_url = prepare_database(&postgres, "paybridge", None).await?;
    println!("Starting the Stripe sandbox and Paybridge …");
    let stage_options = stage::Options { log_file: settings.log_file, ..stage::Options::default() };
    let stage = Stage::set_up(database_url, Clock::system(), stage_options).await?;
    println!(
        "Ready after {:.1} s: gRPC at {}, Stripe at {}\n",
        began.elapsed().as_secs_f32(),
        stage.servers[0].grpc,
        stage.sandbox.url()
    );

    let program = std::env::current_exe().context("this program's own file can't be found")?;
    let mut scenery = Scenery { stage, program, narrator: Narrator { is_loud: true } };
    let mut outcome = ExitCode::SUCCESS;
    for (number, step) in STEPS.iter().enumerate() {
        println!("{:>2}. {}", number + 1, step.title);
        if let Err(error) = (step.play)(&mut scenery).await {
            println!("   ✗ {error:#}\n");
            outcome = ExitCode::FAILURE;
            break;
        }
        println!("   ✓\n");
    }
    scenery.stage.strike().await;
    tokio::task::spawn_blocking(move || postgres.stop()).await??;
    if outcome == ExitCode::SUCCESS {
        println!("All {} steps hold, after {:.1} s.", STEPS.len(), began.elapsed().as_secs_f32());
    } else {
        println!("The story broke off: what differed stands above.");
    }
    Ok(outcome)
}
