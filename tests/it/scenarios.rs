//! The scenarios of `paybridge demo`, each by itself, and some of them with three processes or without webhooks.

use paybridge::dev::scenarios::STEPS;
use paybridge::dev::test_environment::Options;

use crate::support::{context, program};

/// Runs one scenario, by its number.
async fn run(step: usize, options: Options) {
    let mut context = context(options).await;
    let result = (STEPS[step - 1].run)(&mut context).await;
    context.environment.shutdown().await;
    if let Err(error) = result {
        panic!("step {step}, {}: {error:#}", STEPS[step - 1].title);
    }
}

macro_rules! steps {
    ($($name:ident $number:literal)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            run($number, Options::default()).await;
        }
    )*};
}

steps! {
    step_01_stripe_is_connected 1
    step_02_a_customer_is_created_where_asked 2
    step_03_a_checkout_link_arrives_and_ends 3
    step_04_the_page_is_completed_and_no_money_moves 4
    step_05_an_existing_customer_is_linked 5
    step_06_the_default_follows_stripe 6
    step_07_p1_an_invoice_is_charged_once 7
    step_08_a_decline_is_reported_and_retried 8
    step_09_sepa_settles_days_later 9
    step_10_small_amounts 10
    step_11_no_method_then_one_arrives 11
    step_12_a_payment_link 12
    step_13_3d_secure 13
    step_14_a_manual_payment 14
    step_15_a_refund 15
    step_16_a_dispute 16
    step_17_p5_a_subscriber_resumes_on_another_process 17
    step_18_disconnecting_drains_first 18
}

fn three_processes() -> Options {
    Options { servers: 3, program: Some(program()), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_serve_processes_on_one_database_charge_once() {
    run(7, three_processes()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_serve_processes_on_one_database_serve_one_log() {
    run(17, three_processes()).await;
}

/// Stripe has no URL to post webhooks to: the events list is read instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_public_url_the_events_list_is_polled() {
    let polling = || Options { polls_events: true, ..Options::default() };
    run(4, polling()).await;
    run(11, polling()).await;
}
