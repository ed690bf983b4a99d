//! What is done next with a payment.

use super::payment_paths::link;
use super::*;
use crate::domain::customers::LinkState;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::payment_methods::{Mandates, MethodKind, PaymentMethod};

/// A payment with all that decides about it. Its customer has a card, which is the default, and a bank account.
struct Case {
    payment: Payment,
    attempt: Option<Attempt>,
    customer: Customer,
    integration: Integration,
    methods: [PaymentMethod; 2],
}

impl Case {
    fn new(state: PaymentState) -> Self {
        let methods = [fixtures::method(1, MethodKind::Card), fixtures::method(2, MethodKind::SepaDebit)];
        Self {
            payment: payment(state),
            attempt: None,
            customer: fixtures::customer(Some(methods[0].id)),
            integration: fixtures::integration(true),
            methods,
        }
    }

    /// It was refused for lack of authentication, and the customer is to confirm on session.
    fn awaiting_authentication() -> Self {
        let mut case = Self::new(PaymentState::Processing);
        case.payment.state = State::Processing { on_session: true };
        case.attempt = Some(ended(attempt()));
        case
    }

    fn context(&self) -> PlanContext<'_> {
        PlanContext {
            payment: &self.payment,
            attempt: self.attempt.as_ref(),
            customer: &self.customer,
            integration: &self.integration,
            methods: &self.methods,
        }
    }

    fn plan(&self) -> Step {
        self.context().plan()
    }
}

fn decided(input: PaymentInput<'static>) -> Step {
    Step::Apply(Box::new(input))
}

/// The code of the refusal that a rule of Paybridge's has decided, before anything was sent.
fn refused_code(step: &Step) -> Option<&str> {
    let Step::Apply(input) = step else { return None };
    if let PaymentInput::Refused(failure) = &**input { Some(&failure.code) } else { None }
}

#[test]
fn p7_nothing_is_done_with_a_settled_payment() {
    for state in [PaymentState::Succeeded, PaymentState::Canceled] {
        let mut case = Case::new(state);
        assert_eq!(case.plan(), Step::Idle);
        case.attempt = Some(link(None));
        case.payment.pending_operation = Some(PendingOperation::Cancel);
        assert_eq!(case.plan(), Step::Idle, "{state:?}, whatever is left over");
    }
}

#[test]
fn p1_a_pending_operation_closes_the_open_payment_path_first() {
    let paths = [
        (None, Step::CloseIntent),
        (Some(attempt()), Step::CloseIntent),
        (Some(link(None)), Step::CloseIntent),
        (Some(link(Some("cs_1"))), Step::CloseLink),
        (Some(ended(link(Some("cs_1")))), Step::CloseIntent),
    ];
    for (attempt, expected) in paths {
        let mut case = Case::new(PaymentState::Pending);
        case.payment.pending_operation = Some(PendingOperation::Cancel);
        case.attempt = attempt;
        assert_eq!(case.plan(), expected, "{:?}", case.attempt);
    }
}

#[test]
fn p1_a_link_is_created_once_the_intent_is_closed_and_then_waited_for() {
    let mut case = Case::new(PaymentState::Failed);
    case.attempt = Some(link(None));
    assert_eq!(case.plan(), Step::CloseIntent);
    case.payment.provider_payment_intent_id = None;
    assert_eq!(case.plan(), Step::CreateLink);
    case.integration.state = IntegrationState::Disconnecting;
    assert_eq!(case.plan(), decided(PaymentInput::Withdrawn), "a payment made there would not be reported");
    case.attempt = Some(link(Some("cs_1")));
    assert_eq!(case.plan(), Step::Idle, "the payer may be paying");
}

#[test]
fn p2_what_may_have_been_sent_is_resumed_and_not_prepared_again() {
    let mut case = Case::new(PaymentState::Processing);
    for attempt in [Some(attempt()), Some(ended(attempt())), None] {
        case.attempt = attempt;
        assert_eq!(case.plan(), Step::Resume, "{:?}", case.attempt);
    }
    let mut on_session = Case::awaiting_authentication();
    on_session.attempt = Some(attempt());
    assert_eq!(on_session.plan(), Step::Resume, "the confirmation on session may have been sent");
}

#[test]
fn a_failed_payment_and_one_that_waits_for_its_payer_are_left_alone() {
    for state in [PaymentState::Failed, PaymentState::RequiresAction] {
        assert_eq!(Case::new(state).plan(), Step::Idle, "{state:?}");
    }
}

#[test]
fn a_payment_is_charged_in_two_steps_with_the_kinds_that_take_its_currency() {
    let mut case = Case::new(PaymentState::Pending);
    let method = case.methods[0].id;
    case.payment.provider_payment_intent_id = None;
    assert_eq!(case.plan(), Step::CreateIntent { kinds: vec![MethodKind::Card, MethodKind::SepaDebit] });
    case.payment.amount.currency = Currency::parse("USD").unwrap();
    assert_eq!(case.plan(), Step::CreateIntent { kinds: vec![MethodKind::Card] });
    case.payment.provider_payment_intent_id = Some("pi_1".to_owned());
    assert_eq!(case.plan(), Step::PrepareAttempt { method, kinds: vec![MethodKind::Card] });
}

#[test]
fn the_requested_method_is_charged_rather_than_the_default() {
    let mut case = Case::new(PaymentState::Pending);
    case.attempt = Some(ended(attempt()));
    let [card, debit] = case.methods.each_ref().map(|method| method.id);
    let kinds = vec![MethodKind::Card, MethodKind::SepaDebit];
    assert_eq!(case.plan(), Step::PrepareAttempt { method: card, kinds: kinds.clone() });
    case.payment.requested_method_id = Some(debit);
    assert_eq!(case.plan(), Step::PrepareAttempt { method: debit, kinds });
}

#[test]
fn the_customer_authenticates_for_the_method_that_was_refused() {
    let mut case = Case::awaiting_authentication();
    let [card, debit] = case.methods.each_ref().map(|method| method.id);
    case.attempt = Some(Attempt { kind: AttemptKind::Confirm { method: card }, ..ended(attempt()) });
    case.customer.default_payment_method_id = Some(debit);
    let kinds = vec![MethodKind::Card, MethodKind::SepaDebit];
    assert_eq!(case.plan(), Step::PrepareAttempt { method: card, kinds });
}

#[test]
fn a_payment_waits_while_its_customer_is_linked_or_its_integration_paused() {
    let mut case = Case::new(PaymentState::Pending);
    case.integration.state = IntegrationState::Paused;
    assert_eq!(case.plan(), decided(PaymentInput::Wait(PendingReason::IntegrationPaused)));
    case.customer.link_state = LinkState::Pending;
    assert_eq!(case.plan(), decided(PaymentInput::Wait(PendingReason::WaitingForCustomer)));
}

#[test]
fn an_integration_that_is_being_disconnected_collects_nothing_and_nothing_due_needs_none() {
    for state in [IntegrationState::Disconnecting, IntegrationState::Disconnected] {
        let mut case = Case::new(PaymentState::Pending);
        case.integration.state = state;
        assert_eq!(case.plan(), decided(PaymentInput::Withdrawn), "{state:?}");
        case.payment.amount.minor_units = 0;
        assert_eq!(case.plan(), decided(PaymentInput::ZeroAmount), "{state:?}");
    }
}

/// What is wrong, the change that makes it so, and the code of the refusal.
type RefusedCase = (&'static str, fn(&mut Case), &'static str);

/// Applies each change to a payment that could be charged, and compares the code of the refusal.
fn check_refusals(table: &[RefusedCase]) {
    for (name, change, code) in table {
        for intent in [None, Some("pi_1".to_owned())] {
            let mut case = Case::new(PaymentState::Pending);
            case.payment.provider_payment_intent_id = intent;
            change(&mut case);
            let step = case.plan();
            assert_eq!(refused_code(&step), Some(*code), "{name}: {step:?}");
            assert_eq!(step.lacks_method(), *code == "no_payment_method", "{name}");
        }
    }
}

#[test]
fn a_customer_who_cannot_be_charged_is_a_refusal_with_the_reason() {
    check_refusals(&[
        ("no link", |case| case.customer.link_state = LinkState::None, "no_provider_customer"),
        ("a failed link", |case| case.customer.link_state = LinkState::Failed, "no_provider_customer"),
        (
            "linked elsewhere",
            |case| case.customer.integration_id = Some(Uuid::from_u128(9).into()),
            "no_provider_customer",
        ),
        ("no default", |case| case.customer.default_payment_method_id = None, "no_payment_method"),
        (
            "an unknown method",
            |case| case.payment.requested_method_id = Some(Uuid::from_u128(9).into()),
            "no_payment_method",
        ),
    ]);
}

#[test]
fn a_method_that_cannot_be_charged_is_a_refusal_with_the_reason() {
    check_refusals(&[
        ("detached", |case| case.methods[0].detach_time = Some(NOW), "payment_method_not_usable"),
        (
            "a kind that is not allowed",
            |case| case.customer.provider_payment_methods = vec![MethodKind::SepaDebit],
            "payment_method_not_usable",
        ),
        (
            "a currency that the method does not take",
            |case| {
                case.payment.requested_method_id = Some(case.methods[1].id);
                case.payment.amount.currency = Currency::parse("USD").unwrap();
            },
            "payment_method_not_usable",
        ),
        (
            "a legacy source",
            |case| {
                case.payment.requested_method_id = Some(case.methods[1].id);
                case.methods[1].provider_payment_method_id = "src_1".to_owned();
            },
            "payment_method_not_usable",
        ),
        (
            "a mandate that has ended",
            |case| {
                case.payment.requested_method_id = Some(case.methods[1].id);
                case.methods[1].mandates = Mandates { ended: ["mandate".to_owned()].into(), ..Mandates::default() };
            },
            "mandate_missing",
        ),
    ]);
}

#[test]
fn p2_before_the_confirmation_on_session_a_rule_fails_the_payment_as_stripe_has_refused_it() {
    let mut case = Case::awaiting_authentication();
    case.methods[0].detach_time = Some(NOW);
    case.attempt = Some(Attempt { kind: AttemptKind::Confirm { method: case.methods[0].id }, ..ended(attempt()) });
    let Step::Apply(input) = case.plan() else { panic!("the method is detached") };
    let transition = case.payment.apply(case.attempt.as_mut(), *input, CONTEXT);
    assert_eq!((transition.to, transition.is_reportable()), (PaymentState::Failed, true));

    let mut lacking = Case::awaiting_authentication();
    lacking.attempt = Some(ended(attempt()));
    assert!(lacking.plan().lacks_method(), "the refused method no longer exists");
}

#[test]
fn only_a_refusal_for_lack_of_a_method_waits_for_one() {
    for step in [Step::Idle, Step::Resume, decided(PaymentInput::ZeroAmount), decided(PaymentInput::Withdrawn)] {
        assert!(!step.lacks_method(), "{step:?}");
    }
}

#[test]
fn a_payment_that_lacked_a_method_is_due_once_the_customer_has_a_default() {
    let mut case = Case::new(PaymentState::Failed);
    case.payment.state = State::Failed(Failure::no_payment_method());
    assert!(case.context().is_due());
    case.customer.default_payment_method_id = None;
    assert!(!case.context().is_due(), "another method is not charged instead");
    case.customer.default_payment_method_id = Some(Uuid::from_u128(9).into());
    assert!(!case.context().is_due(), "the default is not known");
}

#[test]
fn the_automatic_retry_does_not_interfere_with_a_request_of_the_caller() {
    let mut case = Case::new(PaymentState::Failed);
    case.payment.state = State::Failed(Failure::no_payment_method());
    case.payment.pending_operation = Some(PendingOperation::Cancel);
    assert!(!case.context().is_due(), "it is about to be canceled");
    let mut retried = Case::new(PaymentState::Pending);
    retried.payment.awaits_method = true;
    assert!(!retried.context().is_due(), "it is being retried");
}

#[test]
fn p1_a_link_takes_the_slot_only_while_it_is_free() {
    for state in [PaymentState::Pending, PaymentState::Failed] {
        let mut payment = payment(state);
        assert_eq!(link_rejection(&payment, None), None);
        assert_eq!(link_rejection(&payment, Some(&ended(attempt()))), None, "the attempt has ended");
        assert_eq!(link_rejection(&payment, Some(&attempt())), Some(Rejection::Busy));
        payment.pending_operation = Some(PendingOperation::Retry { method: None });
        assert_eq!(link_rejection(&payment, None), Some(Rejection::Busy), "an operation is pending");
    }
    for state in
        [PaymentState::Processing, PaymentState::RequiresAction, PaymentState::Succeeded, PaymentState::Canceled]
    {
        assert_eq!(link_rejection(&payment(state), None), Some(Rejection::State), "{state:?}");
    }
}
