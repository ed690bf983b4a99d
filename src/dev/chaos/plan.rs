//! The plan of a run, generated from its seed: organizations, their customers, and invoices with what callers do about
//! them.
//!
//! Any webhook of any organization may be lost: the reconcilers have to find what it reported.

#[cfg(test)]
mod tests;

use crate::dev::rng::Rng;

/// How a customer pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CustomerProfile {
    /// A card that succeeds. Invoices that nobody cancels must be paid.
    GoodCard,
    /// A card that succeeds and is stored late, after invoices have failed without one. They must be paid.
    LateCard,
    /// No payment method, ever.
    NoMethod,
    /// A card that is declined, later a good one.
    DeclinedCard,
    /// A card that requires authentication, which fails off session; later a good one.
    NeedsAuthentication,
    /// A card that succeeds and is disputed.
    DisputedCard,
    /// A bank account with this IBAN.
    BankAccount(&'static str),
    /// A card that succeeds; while invoices are charged, another default is chosen and detached in the Stripe
    /// Dashboard.
    ChangingDefault,
    /// No method on the first Checkout page. The first invoice is paid by a payment link with this IBAN, whose mandate
    /// only the charge names; later invoices are debited by it.
    BankAccountByLink(&'static str),
    /// A bank account that was stored in Stripe before the import: no SetupIntent names its mandate.
    ImportedBankAccount,
    /// Imported with a legacy `default_source`, a card that succeeds, and with a newer card that nobody chose.
    DefaultSource,
    /// A card that succeeds, until somebody unsets it as the default in Stripe.
    UnsetDefault(AfterUnset),
}

/// What happens after a default was unset in Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterUnset {
    /// The same method is chosen again.
    ChosenAgain,
    /// Another card is added.
    CardAdded,
    /// The customer stays without a default.
    Nothing,
}

impl CustomerProfile {
    /// The card number or IBAN that is entered on the first Checkout page.
    pub fn first_method(self) -> Option<&'static str> {
        match self {
            Self::GoodCard | Self::LateCard | Self::ChangingDefault | Self::UnsetDefault(_) => Some("4242424242424242"),
            Self::NoMethod | Self::BankAccountByLink(_) | Self::ImportedBankAccount | Self::DefaultSource => None,
            Self::DeclinedCard => Some("4000000000000341"),
            Self::NeedsAuthentication => Some("4000002760003184"),
            Self::DisputedCard => Some("4000000000000259"),
            Self::BankAccount(iban) => Some(iban),
        }
    }

    /// Whether invoices that nobody cancels must be paid in the end.
    pub fn must_pay(self) -> bool {
        match self {
            Self::GoodCard | Self::LateCard | Self::DisputedCard | Self::ImportedBankAccount | Self::DefaultSource => {
                true
            }
            Self::BankAccountByLink(iban) => PAYING_IBANS.contains(&iban),
            Self::UnsetDefault(after_unset) => after_unset != AfterUnset::Nothing,
            Self::NoMethod
            | Self::DeclinedCard
            | Self::NeedsAuthentication
            | Self::BankAccount(_)
            | Self::ChangingDefault => false,
        }
    }

    /// Whether a good card is added after a decline.
    pub fn changes_card(self) -> bool {
        matches!(
            self,
            Self::DeclinedCard | Self::NeedsAuthentication | Self::BankAccount(_) | Self::BankAccountByLink(_)
        )
    }

    /// Adjusts a payer's action: a customer who must pay gives no bank account that fails later.
    pub fn limit_action(self, action: PayerAction) -> PayerAction {
        match action {
            PayerAction::PayByDebit(_) if self.must_pay() => PayerAction::PayByDebit(PAYING_IBANS[0]),
            action => action,
        }
    }

    /// Whether bank debits are allowed as well. Such a customer pays in euros.
    pub fn allows_debits(self) -> bool {
        matches!(self, Self::BankAccount(_) | Self::BankAccountByLink(_) | Self::ImportedBankAccount)
    }

    /// Whether the customer exists in Stripe before Paybridge knows it.
    fn is_imported(self, rng: &mut Rng) -> bool {
        match self {
            Self::ImportedBankAccount | Self::DefaultSource => true,
            Self::GoodCard | Self::DeclinedCard | Self::UnsetDefault(_) => rng.chance(30),
            _ => false,
        }
    }
}

/// Bank accounts whose debits succeed: soon, and late.
pub(super) const PAYING_IBANS: [&str; 2] = ["DE89370400440532013000", "DE08370400440532013003"];

/// Bank accounts whose debits succeed (twice, for its weight), succeed late, fail, fail late, lack funds, and are
/// disputed.
const IBANS: [&str; 7] = [
    "DE89370400440532013000",
    "DE89370400440532013000",
    "DE08370400440532013003",
    "DE62370400440532013001",
    "DE78370400440532013004",
    "DE65370400440002222227",
    "DE35370400440532013002",
];

/// A customer of the plan.
#[derive(Clone, Debug)]
pub(super) struct CustomerPlan {
    pub external_id: String,
    pub profile: CustomerProfile,
    /// Whether it exists in Stripe with its payment method before it is linked. Otherwise Paybridge creates it, and the
    /// customer stores a method by the Checkout link.
    pub is_linked: bool,
}

/// What a payer does with a payment link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PayerAction {
    /// Pays with a card.
    Pay,
    /// Pays with a card after another one was declined.
    PayAfterDecline,
    /// Enters this IBAN if the page accepts one, else a card.
    PayByDebit(&'static str),
    /// Pays with a card that requires 3-D Secure, which takes a while.
    PayWith3ds,
    /// Lets the session expire.
    Abandon,
}

/// An operation on an existing payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Submits the invoice again.
    Resubmit,
    /// Retries the payment.
    Retry,
    /// Requests a payment link and sends it to a payer.
    SendLink(PayerAction),
    /// Changes the amount to this one, in minor units.
    ChangeAmount(i64),
    /// Cancels the payment.
    Cancel,
    /// Records a manual payment.
    RecordManual,
    /// Pays the payment's intent in the Stripe Dashboard.
    PayInDashboard,
}

/// What happens to an invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Submitted once, and repeated only if there is no response.
    Plain,
    /// Submitted by several callers at once, some with the same `request_id`, some with others.
    Repeated,
    /// The amount is zero.
    ZeroAmount,
    /// The amount is below Stripe's minimum.
    TooSmall,
    /// Canceled soon.
    Canceled,
    /// Canceled soon, then submitted again.
    Reopened,
    /// Somebody pays our intent in the Stripe Dashboard.
    PaidInDashboard,
    /// Somebody creates another payment for it in the Stripe Dashboard.
    PaidByOtherIntent,
    /// One operation, or two at once, on any of the processes.
    Operations(Operation, Option<Operation>),
    /// The amount is changed to this one while the payer acts on an open payment link.
    AmountChanged(PayerAction, i64),
}

impl Script {
    /// Whether somebody requests the cancellation.
    pub fn cancels(self) -> bool {
        let is_cancel = |one: Operation| one == Operation::Cancel;
        match self {
            Self::Canceled | Self::Reopened => true,
            Self::Operations(first, second) => is_cancel(first) || second.is_some_and(is_cancel),
            _ => false,
        }
    }

    /// Whether a customer who can pay must pay the invoice in the end.
    pub fn allows_payment(self) -> bool {
        !self.cancels() && !matches!(self, Self::TooSmall | Self::Operations(..) | Self::AmountChanged(..))
    }
}

/// An invoice of the plan.
#[derive(Clone, Debug)]
pub(super) struct InvoicePlan {
    pub organization: usize,
    /// The index among the organization's customers.
    pub customer: usize,
    pub id: String,
    pub amount: i64,
    pub currency: &'static str,
    pub script: Script,
}

/// A complete plan.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The customers of each organization.
    pub organizations: Vec<Vec<CustomerPlan>>,
    /// In the order of submission.
    pub invoices: Vec<InvoicePlan>,
}

/// Whether an organization's integration supports 3-D Secure.
pub(super) fn supports_3ds(organization: usize) -> bool {
    organization % 2 == 1
}

/// Whether an organization's integration polls Stripe's events list instead of receiving webhooks.
pub(super) fn polls(organization: usize) -> bool {
    organization % 3 == 2
}

impl Plan {
    /// Generates the plan of a seed.
    pub fn new(seed: u64, payments: usize) -> Self {
        let mut rng = Rng::named(seed, "plan");
        let count = (payments / 200).clamp(3, 6);
        let customers = (payments / count / 8).clamp(4, 200);
        let organizations: Vec<Vec<CustomerPlan>> =
            (0..count).map(|_| (0..customers).map(|n| customer(&mut rng, n)).collect()).collect();
        let mut invoices = Vec::with_capacity(payments);
        for number in 0..payments {
            let organization = usize::try_from(rng.below(count as u64)).unwrap_or_default();
            let of = &organizations[organization];
            let customer = usize::try_from(rng.below(of.len() as u64)).unwrap_or_default();
            let script = script(&mut rng);
            let is_usd = !of[customer].profile.allows_debits() && rng.chance(20);
            let currency = if is_usd { "USD" } else { "EUR" };
            let amount = match script {
                Script::ZeroAmount => 0,
                Script::TooSmall => 10,
                _ => any_amount(&mut rng),
            };
            invoices.push(InvoicePlan {
                organization,
                customer,
                id: format!("inv-{number}"),
                amount,
                currency,
                script,
            });
        }
        Self { organizations, invoices }
    }
}

fn customer(rng: &mut Rng, number: usize) -> CustomerPlan {
    let profile = match rng.below(100) {
        // Every plan has these.
        _ if number < 2 => CustomerProfile::GoodCard,
        _ if number == 2 => CustomerProfile::BankAccount(rng.pick::<&str>(&IBANS)),
        _ if number == 3 => CustomerProfile::DeclinedCard,
        _ if number == 4 => CustomerProfile::BankAccountByLink(PAYING_IBANS[0]),
        _ if number == 5 => CustomerProfile::DefaultSource,
        _ if number == 6 => CustomerProfile::UnsetDefault(after_unset(rng)),
        0..30 => CustomerProfile::GoodCard,
        30..37 => CustomerProfile::LateCard,
        37..40 => CustomerProfile::NoMethod,
        40..49 => CustomerProfile::DeclinedCard,
        49..56 => CustomerProfile::NeedsAuthentication,
        56..59 => CustomerProfile::DisputedCard,
        59..75 => CustomerProfile::BankAccount(rng.pick::<&str>(&IBANS)),
        75..81 => CustomerProfile::ChangingDefault,
        81..84 => CustomerProfile::BankAccountByLink(rng.pick::<&str>(&PAYING_IBANS)),
        84..87 => CustomerProfile::BankAccountByLink(rng.pick::<&str>(&IBANS)),
        87..90 => CustomerProfile::ImportedBankAccount,
        90..95 => CustomerProfile::DefaultSource,
        _ => CustomerProfile::UnsetDefault(after_unset(rng)),
    };
    CustomerPlan { external_id: format!("customer-{number}"), profile, is_linked: profile.is_imported(rng) }
}

fn after_unset(rng: &mut Rng) -> AfterUnset {
    *rng.pick(&[AfterUnset::ChosenAgain, AfterUnset::CardAdded, AfterUnset::Nothing])
}

fn script(rng: &mut Rng) -> Script {
    match rng.below(100) {
        0..10 => Script::Repeated,
        10..12 => Script::ZeroAmount,
        12..15 => Script::TooSmall,
        15..18 => Script::Canceled,
        18..20 => Script::Reopened,
        20..23 => Script::PaidInDashboard,
        23..27 => Script::PaidByOtherIntent,
        27..33 => Script::Operations(any_operation(rng), None),
        33..55 => Script::Operations(any_operation(rng), Some(any_operation(rng))),
        55..63 => Script::AmountChanged(paying_action(rng), any_amount(rng)),
        _ => Script::Plain,
    }
}

fn any_operation(rng: &mut Rng) -> Operation {
    match rng.below(12) {
        0..4 => Operation::SendLink(any_payer_action(rng)),
        4..6 => Operation::ChangeAmount(any_amount(rng)),
        6 => Operation::Resubmit,
        7..9 => Operation::Retry,
        9 => Operation::Cancel,
        10 => Operation::RecordManual,
        _ => Operation::PayInDashboard,
    }
}

/// An amount in minor units.
fn any_amount(rng: &mut Rng) -> i64 {
    i64::try_from(rng.between(100, 90_000)).unwrap_or(100)
}

/// What somebody who gets a link does.
pub(super) fn any_payer_action(rng: &mut Rng) -> PayerAction {
    if rng.chance(20) { PayerAction::Abandon } else { paying_action(rng) }
}

fn paying_action(rng: &mut Rng) -> PayerAction {
    match rng.below(10) {
        0..4 => PayerAction::Pay,
        4..6 => PayerAction::PayAfterDecline,
        6..8 => PayerAction::PayByDebit(rng.pick::<&str>(&IBANS)),
        _ => PayerAction::PayWith3ds,
    }
}
