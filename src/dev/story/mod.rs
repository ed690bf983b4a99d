//! The story: what Paybridge is for, in eighteen steps, told through its public gRPC API. `paybridge demo` plays all of
//! them and prints what happens; the tests play each one by itself. A step returns an error as soon as an outcome is
//! another than the one promised.

mod client;
mod connecting;
mod customers;
mod detours;
mod payments;
mod streams;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use anyhow::Result;

pub use self::client::{Api, Narrator, Player};
use super::stage::Stage;

/// What a step plays on.
pub struct Scenery {
    /// Database, sandbox, servers.
    pub stage: Stage,
    /// This program, for steps that need another process.
    pub program: PathBuf,
    /// Who tells the audience.
    pub narrator: Narrator,
}

type Played<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// One step of the story.
pub struct Step {
    /// What it shows.
    pub title: &'static str,
    /// Plays it.
    pub play: for<'a> fn(&'a mut Scenery) -> Played<'a>,
}

macro_rules! steps {
    ($($title:literal => $play:path,)*) => {
        [$(Step { title: $title, play: |scenery| Box::pin($play(scenery)) },)*]
    };
}

/// The story, in order.
pub const STEPS: [Step; 18] = steps![
    "Stripe is connected with an API key" => connecting::connect,
    "A customer is created in Stripe only where that is asked for" => customers::create,
    "A Checkout link arrives by event, and ends after 24 hours" => customers::checkout_link,
    "The page is completed: the method is stored, no money moves" => customers::complete_checkout,
    "An existing Stripe customer is linked, with its methods and its default" => customers::link,
    "A new method becomes the default, one chosen at Stripe is followed, a detached one is dropped" => customers::follow_default,
    "An invoice of 49.00 EUR is charged once, however often it is asked for" => payments::charge_once,
    "A declined card is told with its reason, and retried on the same PaymentIntent" => payments::decline_and_retry,
    "SEPA settles days later, for good or ill; a currency that nothing takes is refused" => payments::sepa,
    "Nothing due, less than nothing, and too little" => payments::small_amounts,
    "Without a payment method a payment fails, and is tried again when one arrives" => payments::no_method,
    "A payment link: the customer pays an invoice on Stripe's page, and nothing else collects it" => detours::payment_link,
    "3-D Secure: the bank wants to see the customer, who confirms on a page" => detours::three_d_secure,
    "An invoice that was paid elsewhere is recorded, and the card is left alone" => detours::paid_elsewhere,
    "A refund goes back once, however often it is asked for" => detours::refund,
    "A dispute is reported from its beginning to its end" => detours::dispute,
    "A subscriber that is cut off resumes on another process, and misses nothing" => streams::resume,
    "Disconnecting lets what moves come to its end first" => connecting::disconnect,
];
