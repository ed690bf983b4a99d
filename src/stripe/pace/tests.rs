use futures_util::future::join_all;

use super::super::client::Timeouts;
use super::super::error::{Doubt, Verdict};
use super::super::scripted::{Reply, Script, answer};
use super::*;

const INTENT: &str = r#"{"id":"pi_1","object":"payment_intent","amount":4900,"currency":"eur","status":"succeeded",
    "created":1700000000}"#;

struct Counter {
    script: Script,
    client: Client,
    key: ApiKey,
}

impl Counter {
    async fn new(replies: Vec<Reply>) -> Self {
        let script = Script::sequence(replies).await;
        let client = script.client_on(Clock::system(), Timeouts::default());
        let key = client.key("sk_test_sandbox".into(), "acct_1", false, Uuid::from_u128(1).into());
        Self { script, client, key }
    }

    /// Hands out so many slots, all of this moment.
    fn supply(&self, count: u32) {
        let bucket = BucketId { account: "acct_1".to_owned(), livemode: false, endpoint: WHOLE_ACCOUNT.to_owned() };
        let slots = Slots { first: self.client.clock.now(), interval: Duration::NANOSECOND, count };
        self.client.supply(&bucket, slots);
    }

    async fn confirm(&self) -> Result<(), Error> {
        self.client.confirm_payment_intent(&self.key, "pi_1", "attempt-1", "payment_method=pm_1").await.map(|_| ())
    }

    /// Supplies one slot whenever a call waits for one, at most `count` times.
    async fn supply_when_wanted(&self, count: usize) {
        for _ in 0..count {
            while self.client.lacking().iter().all(|lacking| lacking.wanted == 0) {
                self.client.slots_wanted().await;
            }
            self.supply(1);
        }
        std::future::pending::<()>().await;
    }

    async fn confirm_with(&self, slots: usize) -> Result<(), Error> {
        tokio::select! {
            outcome = self.confirm() => outcome,
            () = self.supply_when_wanted(slots) => unreachable!("it never ends"),
        }
    }
}

#[tokio::test]
async fn p2_a_call_whose_turn_does_not_come_is_not_sent_and_not_done() {
    let counter = Counter::new(vec![answer(200, INTENT)]).await;
    let error = counter.confirm().await.unwrap_err();
    assert!(matches!(error, Error::NotNow { hold: Hold::Limit, .. }), "{error:?}");
    assert_eq!(error.verdict(), Verdict::NotDone);
    assert!(error.held_back().is_some_and(|wait| wait <= RealDuration::from_secs(2)), "{error:?}");
    assert!(counter.script.requests().is_empty());
    counter.confirm_with(1).await.unwrap();
    assert_eq!(counter.script.requests().len(), 1, "whoever gave up is not in line any more");
}

#[tokio::test]
async fn p2_a_repetition_that_gets_no_turn_does_not_undo_the_doubt_about_the_first_try() {
    let counter = Counter::new(vec![Reply::Cut, answer(200, INTENT)]).await;
    let error = counter.confirm_with(1).await.unwrap_err();
    assert_eq!(counter.script.requests().len(), 1, "the second try was not sent");
    assert!(matches!(error, Error::Unknown { reason: Doubt::Unrepeated, .. }), "{error:?}");
    assert_eq!(error.held_back(), None, "it was tried: the job has failed");
}

#[tokio::test]
async fn every_try_needs_a_turn_of_its_own() {
    let counter = Counter::new(vec![answer(503, ""), answer(503, ""), answer(200, INTENT)]).await;
    counter.confirm_with(3).await.unwrap();
    assert_eq!(counter.script.requests().len(), 3);
}

#[tokio::test]
async fn p2_nothing_is_sent_into_an_outage_and_one_call_finds_out_that_it_is_over() {
    let mut replies = vec![answer(503, ""); 20];
    replies.push(answer(200, INTENT));
    let counter = Counter::new(replies).await;
    // Seven calls of three tries each: the last try is held back, and its call in doubt because of the earlier ones. That
    // call begins after the others have ended, as what is under way when the outage shows is not held back.
    let calls = async {
        let mut outcomes = join_all(std::array::from_fn::<_, 6, _>(|_| counter.confirm())).await;
        outcomes.push(counter.confirm().await);
        outcomes
    };
    tokio::select! {
        outcomes = calls => assert!(outcomes.iter().all(|outcome| {
            outcome.as_ref().is_err_and(|error| error.verdict() == Verdict::Unknown)
        }), "{outcomes:?}"),
        () = counter.supply_when_wanted(100) => unreachable!("it never ends"),
    }
    assert_eq!(counter.script.requests().len(), 20);
    let error = counter.confirm().await.unwrap_err();
    assert!(matches!(error, Error::NotNow { hold: Hold::Outage, .. }), "{error:?}");
    assert_eq!(counter.script.requests().len(), 20, "it was not sent");
    counter.client.clock.advance(Duration::seconds(3));
    counter.confirm_with(1).await.unwrap();
    counter.confirm_with(1).await.unwrap();
    assert_eq!(counter.script.requests().len(), 22);
}
