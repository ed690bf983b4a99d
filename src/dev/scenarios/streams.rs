//! Step 17: a subscriber loses its connection.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::client::{Api, BillingClient, check};
use super::context::ScenarioContext;
use super::payments::{create_customer_with_method, create_payment};
use crate::dev::test_environment::TestEnvironment;
use crate::grpc::proto::StreamEventsRequest;
use crate::grpc::proto::stream_events_request::Start;
use crate::grpc::proto::stream_events_response::Message;

/// How many invoices are paid after the disconnect.
const INVOICES: usize = 6;

/// Reads event positions from a server until `enough` returns `true` for those read so far.
async fn follow(url: &str, token: &str, after: i64, enough: impl Fn(&[i64]) -> bool) -> Result<Vec<i64>> {
    let mut api = Api::connect(url, token).await?;
    let request = StreamEventsRequest { start: Some(Start::AfterPosition(after)), ..StreamEventsRequest::default() };
    let mut stream = api.events.stream_events(request).await?.into_inner();
    let mut positions = Vec::new();
    let reading = async {
        while !enough(&positions) {
            let response = stream.message().await?.context("the stream ended")?;
            if let Some(Message::Event(event)) = response.message {
                positions.push(event.position);
            }
        }
        Ok(positions)
    };
    match tokio::time::timeout(Duration::from_secs(30), reading).await {
        Ok(positions) => positions,
        Err(_) => bail!("the subscriber received too few events within 30 s"),
    }
}

pub(super) async fn resume(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 17").await?;
    create_customer_with_method(context, &mut billing, "hooli", &["card"], "4242424242424242").await?;
    let first_server = context.environment.servers[0].grpc.clone();

    context.reporter.print("a subscriber reads three events and loses its connection");
    let mut positions = follow(&first_server, &billing.token, 0, |read| read.len() >= 3).await?;
    for number in 0..INVOICES {
        create_payment(&mut billing, "hooli", &format!("inv-17-{number}"), 4900, "EUR").await?;
    }

    context.reporter.print("it resumes after its last position, on another process");
    let second = another_process(context).await?;
    for number in 0..INVOICES {
        billing.wait_for_event("invoice.payment_status_updated", &format!("inv-17-{number}")).await?;
    }
    let all = billing.events().last().context("events were reported")?.position;
    let last = *positions.last().context("positions were read")?;
    let rest = follow(&second, &billing.token, last, |read| read.last() == Some(&all)).await;
    positions.extend(rest?);
    let expected: Vec<i64> = (1..=all).collect();
    check!(positions == expected, "every event arrives once and in order");
    if context.environment.servers.len() > 1 {
        context.environment.stop_newest_server().await;
    }
    Ok(())
}

/// Starts a server in a process of its own, on the same database.
async fn another_process(context: &mut ScenarioContext) -> Result<String> {
    let program = context.program.clone();
    let environment: &mut TestEnvironment = &mut context.environment;
    Ok(environment.add_process(program).await?.grpc)
}
