//! `paybridge demo`: runs all scenarios and prints what happens.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use super::postgres::{self, Postgres};
use super::scenarios::{Reporter, STEPS, ScenarioContext};
use super::test_environment::{self, TestEnvironment, prepare_database};
use crate::clock::Clock;
use crate::config;

/// Starts a test environment and runs every scenario in it. Succeeds only if every outcome is as expected.
pub async fn run_demo(settings: config::Demo) -> Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("paybridge-demo-").tempdir()?;
    if let Some(file) = &settings.log_file {
        println!("The log is written to {}.", file.display());
    }
    println!("Starting an embedded Postgres …");
    let began = Instant::now();
    let postgres_folder = folder.path().join("postgres");
    let options = postgres::Options { programs: settings.postgres_programs, ..postgres::Options::default() };
    let postgres = tokio::task::spawn_blocking(move || Postgres::start(&postgres_folder, &options)).await??;
    let database_url = prepare_database(&postgres, "paybridge", None).await?;
    println!("Starting the Stripe sandbox and Paybridge …");
    let options = test_environment::Options { log_file: settings.log_file, ..test_environment::Options::default() };
    let environment = TestEnvironment::start(database_url, Clock::system(), options).await?;
    println!(
        "Ready after {:.1} s: gRPC at {}, Stripe at {}\n",
        began.elapsed().as_secs_f32(),
        environment.servers[0].grpc,
        environment.sandbox.url()
    );

    let program = std::env::current_exe().context("the path of the running program is unknown")?;
    let mut context = ScenarioContext { environment, program, reporter: Reporter { is_enabled: true } };
    let mut outcome = ExitCode::SUCCESS;
    for (number, step) in STEPS.iter().enumerate() {
        println!("{:>2}. {}", number + 1, step.title);
        if let Err(error) = (step.run)(&mut context).await {
            println!("   ✗ {error:#}\n");
            outcome = ExitCode::FAILURE;
            break;
        }
        println!("   ✓\n");
    }
    context.environment.shutdown().await;
    tokio::task::spawn_blocking(move || postgres.stop()).await??;
    if outcome == ExitCode::SUCCESS {
        println!("All {} steps passed after {:.1} s.", STEPS.len(), began.elapsed().as_secs_f32());
    } else {
        println!("The demo stopped at the first unexpected outcome, which is shown above.");
    }
    Ok(outcome)
}
