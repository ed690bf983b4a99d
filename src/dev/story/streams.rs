//! Step 17: the subscriber that is cut off.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Scenery;
use super::client::{Api, Player, hold};
use super::payments::{ready_customer, start_payment};
use crate::dev::stage::Stage;
use crate::grpc::proto::StreamEventsRequest;
use crate::grpc::proto::stream_events_request::Start;
use crate::grpc::proto::stream_events_response::Message;

/// How many invoices are paid around the cut.
const INVOICES: usize = 6;

/// Reads positions from a server until `enough` holds of all that were read.
async fn follow(url: &str, token: &str, after: i64, enough: impl Fn(&[i64]) -> bool) -> Result<Vec<i64>> {
    let mut api = Api::connect(url, token).await?;
    let request = StreamEventsRequest { start: Some(Start::AfterPosition(after)), webhook_types: Vec::new() };
    let mut stream = api.events.stream_events(request).await?.into_inner();
    let mut positions = Vec::new();
    let reading = async {
        while !enough(&positions) {
            let answer = stream.message().await?.context("the stream has ended")?;
            if let Some(Message::Event(event)) = answer.message {
                positions.push(event.position);
            }
        }
        Ok(positions)
    };
    match tokio::time::timeout(Duration::from_secs(30), reading).await {
        Ok(positions) => positions,
        Err(_) => bail!("the subscriber waited in vain"),
    }
}

pub(super) async fn resume(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 17").await?;
    ready_customer(scenery, &mut player, "hooli", &["card"], "4242424242424242").await?;
    let first_server = scenery.stage.servers[0].grpc.clone();

    scenery.narrator.say("a subscriber reads three events, and is cut off");
    let mut positions = follow(&first_server, &player.token, 0, |read| read.len() >= 3).await?;
    for number in 0..INVOICES {
        start_payment(&mut player, "hooli", &format!("inv-17-{number}"), 4900, "EUR").await?;
    }

    scenery.narrator.say("it comes back with its last position, on another process");
    let second = another_process(scenery).await?;
    for number in 0..INVOICES {
        player.told("invoice.payment_status_updated", &format!("inv-17-{number}")).await?;
    }
    let all = player.events().last().context("events were told")?.position;
    let last = *positions.last().context("positions were read")?;
    let rest = follow(&second, &player.token, last, |read| read.last() == Some(&all)).await;
    positions.extend(rest?);
    let expected: Vec<i64> = (1..=all).collect();
    hold!(positions == expected, "nothing missed, nothing doubled, nothing out of order");
    if scenery.stage.servers.len() > 1 {
        scenery.stage.end_newest_server().await;
    }
    Ok(())
}

/// A server in a process of its own, on the same database.
async fn another_process(scenery: &mut Scenery) -> Result<String> {
    let program = scenery.program.clone();
    let stage: &mut Stage = &mut scenery.stage;
    Ok(stage.add_process(program).await?.grpc)
}
