//! How a worker creates the payment's intent. The steps mirror `app::payments::intents`.

use super::calls::{Request, Response};
use super::ids::{index, intent_id};
use super::worker::{Actor, Result};
use super::world::Outcome;
use crate::domain::fixtures;
use crate::domain::payments::{PaymentInput, PendingReason};
use crate::domain::signals::{IntentSnapshot, IntentStatus};
use crate::domain::stripe_requests::{KeyState, Next, Observed, Purpose};

impl Actor {
    /// `None`: the job is finished. Otherwise, whether the payment's intent was created just now.
    pub(super) async fn create_intent(&self) -> Result<Option<bool>> {
        let (mut request, now) = self
            .tx(|world| {
                let (number, amount) = (world.payment.intent_number, world.payment.amount.minor_units);
                let newest = world.creations.last().filter(|request| request.generation >= number).cloned();
                let request = newest.unwrap_or_else(|| {
                    let request = fixtures::request(Purpose::PaymentIntent, number, &amount.to_string(), world.now);
                    world.creations.push(request.clone());
                    request
                });
                (request, world.now)
            })
            .await?;
        let (number, amount) = (request.generation, request.body.parse().expect("an amount"));
        let mut observed = Observed::Unread;
        loop {
            match request.next(observed, now) {
                Next::Send => match self.send(request.key.as_str(), Request::CreateIntent { amount }).await {
                    Response::Intent(intent) => return self.adopt(number, &intent).await.map(|()| Some(true)),
                    Response::Replayed(response) => {
                        let Response::Intent(stale) = *response else { panic!("not of an intent: {response:?}") };
                        let intent = self.read(|world| world.stripe.intent(index(&stale.id))).await?;
                        if intent.status != IntentStatus::Canceled {
                            return self.adopt(number, &intent).await.map(|()| Some(false));
                        }
                        observed = Observed::Spent;
                    }
                    Response::Unknown { replayed: true } => request.key_state = KeyState::ReplaysError(now),
                    Response::Mismatch => request.key_state = KeyState::Taken(now),
                    response => return self.intent_not_created(number, response).await.map(|()| None),
                },
                Next::Read => match self.find_intent(amount).await? {
                    Some(intent) => return self.adopt(number, &intent).await.map(|()| Some(false)),
                    None if self.world.borrow().has_only_harmless_intents() => observed = Observed::Spent,
                    None => observed = Observed::Absent,
                },
                Next::Stop(_) => return self.stop().await.map(|()| None),
                Next::NewKey => {
                    self.tx(|world| {
                        if world.awaits_intent(number) {
                            world.payment.intent_number = number + 1;
                            world.payment.version += 1;
                        }
                    })
                    .await?;
                    return Ok(Some(false));
                }
                other => panic!("not for the creation of an intent: {other:?}"),
            }
        }
    }

    async fn intent_not_created(&self, number: i32, response: Response) -> Result<()> {
        let outcome = self
            .tx(|world| {
                if !world.awaits_intent(number) {
                    return Outcome::Retry;
                }
                match response {
                    Response::Refused(failure) => {
                        world.payment.intent_number = number + 1;
                        let is_small = failure.code == "amount_too_small";
                        world.apply(if is_small {
                            PaymentInput::Wait(PendingReason::AmountTooSmall)
                        } else {
                            PaymentInput::Refused(failure)
                        });
                        Outcome::Done
                    }
                    Response::Unknown { .. } => {
                        world.apply(PaymentInput::Unknown);
                        Outcome::Retry
                    }
                    _ => Outcome::Retry,
                }
            })
            .await?;
        self.finish(outcome).await
    }

    async fn adopt(&self, number: i32, intent: &IntentSnapshot) -> Result<()> {
        self.tx(|world| {
            if !world.awaits_intent(number) {
                return;
            }
            if intent.amount == world.payment.amount {
                world.payment.provider_payment_intent_id = Some(intent.id.clone());
            } else {
                world.payment.intent_number = number + 1;
            }
            world.payment.unknown_since = None;
            world.payment.version += 1;
        })
        .await
    }

    async fn find_intent(&self, amount: i64) -> Result<Option<IntentSnapshot>> {
        self.read(|world| {
            let known = |id: &str| {
                world.attempts.iter().any(|attempt| attempt.provider_payment_intent_id.as_deref() == Some(id))
            };
            let all = world.stripe.intents.iter().enumerate();
            let open = all.filter(|(at, intent)| {
                !intent.is_from_dashboard
                    && intent.status != IntentStatus::Canceled
                    && intent.amount == amount
                    && !known(&intent_id(*at))
            });
            open.map(|(at, _)| world.stripe.intent(at)).next_back()
        })
        .await
    }
}
