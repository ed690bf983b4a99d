use super::*;
use crate::domain::fixtures;
use crate::domain::payments::Manual;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn payment(state: State) -> Payment {
    Payment { id: Uuid::from_u128(7).into(), state, ..fixtures::payment(4900) }
}

fn manual() -> Manual {
    Manual { reference: "bank".to_owned(), time: NOW }
}

#[test]
fn every_state_is_read_as_it_was_written() {
    let url = Some("https://pay.test/1".to_owned());
    let charge = Some("ch_1".to_owned());
    let authenticate = |on_session| RequiredAction::Authenticate { since: NOW, on_session };
    let lacking = RequiredAction::PayByLink { failure: Some(Failure::no_payment_method()) };
    let states = [
        State::Pending { reason: None },
        State::Pending { reason: Some(PendingReason::AmountTooSmall) },
        State::Processing { on_session: false },
        State::Processing { on_session: true },
        State::RequiresAction { url: url.clone(), action: authenticate(true) },
        State::RequiresAction { url: None, action: authenticate(false) },
        State::RequiresAction { url: url.clone(), action: lacking },
        State::RequiresAction { url, action: RequiredAction::PayByLink { failure: None } },
        State::Succeeded { provider_charge_id: charge.clone(), manual: Some(manual()) },
        State::Succeeded { provider_charge_id: charge, manual: None },
        State::Succeeded { provider_charge_id: None, manual: Some(manual()) },
        State::Failed(Failure::ours("card_declined", "Your card was declined.")),
        State::Canceled,
    ];
    for state in states {
        let payment = payment(state);
        assert_eq!(Row::new(&payment).unwrap().parse().unwrap(), payment);
    }
}

#[test]
fn a_row_with_data_of_another_state_is_an_error_that_names_the_payment() {
    let changes: [fn(&mut Row); 8] = [
        |row| row.state = "failed".to_owned(),
        |row| row.pending_reason = Some("amount_too_small".to_owned()),
        |row| row.failure = Some(to_json(&Failure::no_payment_method()).unwrap()),
        |row| row.on_session = true,
        |row| row.next_action_url = Some("https://pay.test/1".to_owned()),
        |row| row.action_time = Some(NOW),
        |row| row.provider_charge_id = Some("ch_1".to_owned()),
        |row| row.manual = Some(to_json(&manual()).unwrap()),
    ];
    let canceled = payment(State::Canceled);
    for (number, change) in changes.iter().enumerate() {
        let mut row = Row::new(&canceled).unwrap();
        change(&mut row);
        let Err(Error::Internal(source)) = row.parse() else { panic!("change {number} is accepted") };
        assert!(source.to_string().contains(&canceled.id.to_string()), "{source}");
    }
}
