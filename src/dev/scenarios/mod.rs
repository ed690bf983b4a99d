//! The product's main scenarios in eighteen steps, through its public gRPC API. `paybridge demo` runs all of them and
//! prints what happens; the tests run each one on its own. A step returns an error at the first unexpected outcome.

mod client;
mod connecting;
mod context;
mod customers;
mod other_flows;
mod payments;
mod reporter;
mod streams;

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;

pub use self::client::{Api, BillingClient};
pub use self::context::ScenarioContext;
pub use self::reporter::Reporter;

type StepFuture<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A scenario.
pub struct Step {
    /// What the step shows, as a sentence for people.
    pub title: &'static str,
    /// Runs the step. It fails at the first unexpected outcome.
    pub run: for<'a> fn(&'a mut ScenarioContext) -> StepFuture<'a>,
}

macro_rules! steps {
    ($($title:literal => $run:path,)*) => {
        [$(Step { title: $title, run: |context| Box::pin($run(context)) },)*]
    };
}

/// All steps, in the order of the demo.
pub const STEPS: [Step; 18] = steps![
    "Stripe is connected with an API key" => connecting::connect,
    "A customer is created in Stripe only if the request says so" => customers::create,
    "A Checkout link is reported by an event and expires after 24 hours" => customers::checkout_link,
    "Completing the Checkout page stores the payment method and moves no money" => customers::complete_checkout,
    "An existing Stripe customer is linked, with its payment methods and its default"
        => customers::link,
    "A new method becomes the default, a choice made in Stripe is followed, a detached method is dropped"
        => customers::follow_default,
    "An invoice of 49.00 EUR is charged once, however often it is requested" => payments::charge_once,
    "A decline is reported with its reason and retried on the same PaymentIntent" => payments::decline_and_retry,
    "SEPA debits succeed or fail days later; an unsupported currency is refused" => payments::sepa,
    "Zero amounts, negative amounts, and amounts below Stripe's minimum" => payments::small_amounts,
    "A payment without a payment method fails, and is retried when one is added" => payments::no_method,
    "A payment link: the customer pays on Stripe's page, and nothing else collects the invoice"
        => other_flows::payment_link,
    "3-D Secure: the bank requires authentication, and the customer confirms on a page" => other_flows::three_d_secure,
    "A payment made elsewhere is recorded, and the card is not charged" => other_flows::paid_elsewhere,
    "A refund is made once, however often it is requested" => other_flows::refund,
    "A dispute is reported from its creation to its outcome" => other_flows::dispute,
    "A disconnected subscriber resumes on another process and misses nothing" => streams::resume,
    "Disconnecting waits for payments in progress" => connecting::disconnect,
];
