use futures_util::future::join_all;

use super::super::client::{Client, Timeouts};
use super::super::error::{Disposition, UnknownCause};
use super::super::scripted::{Reply, ScriptedServer, request, response};
use super::*;

const INTENT: &str = r#"{"id":"pi_1","object":"payment_intent","amount":4900,"currency":"eur","status":"succeeded",
    "created":1700000000}"#;

struct Fixture {
    server: ScriptedServer,
    client: Client,
    key: ApiKey,
}

impl Fixture {
    async fn new(replies: Vec<Reply>) -> Self {
        let server = ScriptedServer::sequence(replies).await;
        let client = server.client_on(Clock::system(), Timeouts::default());
        let (organization, livemode) = (Uuid::from_u128(1).into(), false);
        let key = client.rate_limiters().key("sk_test_sandbox".into(), "acct_1", livemode, organization);
        Self { server, client, key }
    }

    /// Supplies `count` slots, all usable now.
    fn supply(&self, count: u32) {
        let bucket = BucketId { account: "acct_1".to_owned(), livemode: false, endpoint: WHOLE_ACCOUNT.to_owned() };
        let slots = Slots { first: self.client.clock.now(), interval: Duration::NANOSECOND, count };
        self.client.rate_limiters().supply(&bucket, slots);
    }

    async fn confirm(&self) -> Result<(), Error> {
        self.client.confirm_payment_intent(&self.key, "pi_1", &request("payment_method=pm_1")).await.map(|_| ())
    }

    /// Supplies one slot whenever a call waits for one, at most `count` times.
    async fn supply_when_wanted(&self, count: usize) {
        for _ in 0..count {
            while self.client.rate_limiters().demand().iter().all(|demand| demand.wanted == 0) {
                self.client.rate_limiters().slots_wanted().await;
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
async fn p2_a_call_without_a_permit_is_not_sent_and_not_done() {
    let fixture = Fixture::new(vec![response(200, INTENT)]).await;
    let error = fixture.confirm().await.unwrap_err();
    assert!(matches!(error, Error::NotSent { cause: UnsentCause::Limit, .. }), "{error:?}");
    assert_eq!(error.disposition(), Disposition::NotDone);
    assert!(error.retry_delay().is_some_and(|delay| delay <= RealDuration::from_secs(2)), "{error:?}");
    assert!(fixture.server.requests().is_empty());
    fixture.confirm_with(1).await.unwrap();
    assert_eq!(fixture.server.requests().len(), 1, "the call that timed out has left the queue");
}

/// While an integration catches up, its key reads, and changes nothing.
#[tokio::test]
async fn p8_a_read_only_key_sends_reads_alone() {
    let server = ScriptedServer::sequence(vec![response(200, INTENT)]).await;
    let client = server.client();
    let key = ApiKey::unlimited("sk_test_sandbox".into()).read_only();
    client.payment_intent(&key, "pi_1").await.unwrap();
    let stored = request("payment_method=pm_1");
    let refused = [
        client.confirm_payment_intent(&key, "pi_1", &stored).await.map(|_| ()),
        client.create_payment_intent(&key, &stored).await.map(|_| ()),
        client.create_refund(&key, &stored).await.map(|_| ()),
        client.create_customer(&key, &stored).await.map(|_| ()),
        client.create_checkout_session(&key, &stored).await.map(|_| ()),
        client.expire_checkout_session(&key, "cs_1").await.map(|_| ()),
        client.cancel_payment_intent(&key, "pi_1").await.map(|_| ()),
        client.detach_payment_method(&key, "pm_1").await.map(|_| ()),
        client.delete_webhook_endpoint(&key, "we_1").await,
    ];
    for outcome in refused {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::NotSent { cause: UnsentCause::CatchingUp, .. }), "{error:?}");
        assert_eq!(error.disposition(), Disposition::NotDone);
        assert_eq!(error.retry_delay(), Some(RealDuration::from_secs(10)));
    }
    assert_eq!(server.requests().len(), 1, "only the read was sent");
}

#[tokio::test]
async fn p2_a_retry_without_a_permit_leaves_an_unknown_attempt_unknown() {
    let fixture = Fixture::new(vec![Reply::Disconnect, response(200, INTENT)]).await;
    let error = fixture.confirm_with(1).await.unwrap_err();
    assert_eq!(fixture.server.requests().len(), 1, "the retry was not sent");
    assert!(matches!(error, Error::Unknown { reason: UnknownCause::RetryRejected, .. }), "{error:?}");
    assert_eq!(error.retry_delay(), None, "it was attempted: the job has failed");
}

#[tokio::test]
async fn every_attempt_needs_its_own_permit() {
    let fixture = Fixture::new(vec![response(503, ""), response(503, ""), response(200, INTENT)]).await;
    fixture.confirm_with(3).await.unwrap();
    assert_eq!(fixture.server.requests().len(), 3);
}

#[tokio::test]
async fn p2_nothing_is_sent_into_an_outage_and_one_probe_detects_its_end() {
    let mut replies = vec![response(503, ""); 20];
    replies.push(response(200, INTENT));
    let fixture = Fixture::new(replies).await;
    // Seven calls with three attempts each: the last attempt is held back, and its call is unknown because of the
    // earlier ones. That call starts after the others have ended, because calls in flight are not held back when the
    // outage begins.
    let calls = async {
        let mut outcomes = join_all(std::array::from_fn::<_, 6, _>(|_| fixture.confirm())).await;
        outcomes.push(fixture.confirm().await);
        outcomes
    };
    tokio::select! {
        outcomes = calls => assert!(outcomes.iter().all(|outcome| {
            outcome.as_ref().is_err_and(|error| error.disposition() == Disposition::Unknown)
        }), "{outcomes:?}"),
        () = fixture.supply_when_wanted(100) => unreachable!("it never ends"),
    }
    assert_eq!(fixture.server.requests().len(), 20);
    let error = fixture.confirm().await.unwrap_err();
    assert!(matches!(error, Error::NotSent { cause: UnsentCause::Outage, .. }), "{error:?}");
    assert_eq!(fixture.server.requests().len(), 20, "the call was not sent");
    fixture.client.clock.advance(Duration::seconds(3));
    fixture.confirm_with(1).await.unwrap();
    fixture.confirm_with(1).await.unwrap();
    assert_eq!(fixture.server.requests().len(), 22);
}
