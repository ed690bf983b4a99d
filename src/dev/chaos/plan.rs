//! What a run is going to do, decided by its seed before it begins: organizations, their customers and what is in their
//! wallets, and invoices with what their callers do.
//!
//! Whatever a webhook brings may be lost on its way, by any organization: the reconcilers have to find it.

#[cfg(test)]
mod tests;

use crate::dev::rng::Rng;

/// What a customer pays with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wallet {
    /// A card that pays. An invoice that nobody withdraws must be paid in the end.
    Good,
    /// A good card that is stored late, after invoices have failed for want of it. They must be paid in the end.
    Late,
    /// Nothing, ever.
    Empty,
    /// A card that is refused, then a better one.
    Refused,
    /// A card that wants its holder to prove who they are, which nobody does off session; then a better one.
    WantsProof,
    /// A card that pays, and is disputed.
    Disputed,
    /// Bank accounts: what follows is the IBAN.
    Bank(&'static str),
    /// A card that pays; then another is chosen and one detached by hand at Stripe, while invoices are charged.
    Fickle,
    /// Nothing on the first page. The first invoice is paid on a page of its own with this IBAN, whose mandate only the
    /// charge names; later invoices are debited by it.
    DebitsByLink(&'static str),
    /// A bank account, saved at Stripe before the import: no SetupIntent names its mandate.
    ImportedDebit,
    /// Imported with a legacy `default_source`, a card that pays, and with a newer card that nobody has ever chosen.
    DefaultSource,
    /// A card that pays, until somebody unsets it as the default at Stripe.
    Unset(Afterwards),
}

/// What happens after a default was unset at Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// The same method is chosen again.
    Chosen,
    /// Another card is added.
    Added,
    /// Nothing: the customer stays without a default.
    Nothing,
}

impl Wallet {
    /// The card number or IBAN that is entered on the first Checkout page.
    pub fn first_method(self) -> Option<&'static str> {
        match self {
            Self::Good | Self::Late | Self::Fickle | Self::Unset(_) => Some("4242424242424242"),
            Self::Empty | Self::DebitsByLink(_) | Self::ImportedDebit | Self::DefaultSource => None,
            Self::Refused => Some("4000000000000341"),
            Self::WantsProof => Some("4000002760003184"),
            Self::Disputed => Some("4000000000000259"),
            Self::Bank(iban) => Some(iban),
        }
    }

    /// Whether invoices that nobody withdraws must be paid in the end.
    pub fn must_pay(self) -> bool {
        match self {
            Self::Good | Self::Late | Self::Disputed | Self::ImportedDebit | Self::DefaultSource => true,
            Self::DebitsByLink(iban) => PAYING_IBANS.contains(&iban),
            Self::Unset(afterwards) => afterwards != Afterwards::Nothing,
            Self::Empty | Self::Refused | Self::WantsProof | Self::Bank(_) | Self::Fickle => false,
        }
    }

    /// Whether a better card is added after a refusal.
    pub fn mends(self) -> bool {
        matches!(self, Self::Refused | Self::WantsProof | Self::Bank(_) | Self::DebitsByLink(_))
    }

    /// A payer, as this customer would be: one who must pay in the end gives no bank account that fails later.
    pub fn as_payer(self, payer: Payer) -> Payer {
        match payer {
            Payer::Debits(_) if self.must_pay() => Payer::Debits(PAYING_IBANS[0]),
            payer => payer,
        }
    }

    /// Whether bank debits are allowed, too; such a customer pays in euros.
    pub fn takes_debits(self) -> bool {
        matches!(self, Self::Bank(_) | Self::DebitsByLink(_) | Self::ImportedDebit)
    }

    /// Whether the customer exists at Stripe before Paybridge knows it.
    fn is_imported(self, rng: &mut Rng) -> bool {
        match self {
            Self::ImportedDebit | Self::DefaultSource => true,
            Self::Good | Self::Refused | Self::Unset(_) => rng.chance(30),
            _ => false,
        }
    }
}

/// Bank accounts that pay: at once, and late.
pub(super) const PAYING_IBANS: [&str; 2] = ["DE89370400440532013000", "DE08370400440532013003"];

/// Bank accounts that pay, pay late, fail, fail late, lack the money, and dispute.
const IBANS: [&str; 7] = [
    "DE89370400440532013000",
    "DE89370400440532013000",
    "DE08370400440532013003",
    "DE62370400440532013001",
    "DE78370400440532013004",
    "DE65370400440002222227",
    "DE35370400440532013002",
];

/// A customer.
#[derive(Clone, Debug)]
pub(super) struct CustomerPlan {
    pub external_id: String,
    pub wallet: Wallet,
    /// Exists at Stripe with its card before it is linked; else it is created there, and pays through the link.
    pub is_linked: bool,
}

/// What a payer does with a link on which one invoice can be paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payer {
    /// Pays with a card.
    Pays,
    /// Pays with a card, after another one was declined.
    IsDeclinedFirst,
    /// Gives an IBAN, where the page takes one; else a card.
    Debits(&'static str),
    /// Pays with a card whose bank wants a proof first, which takes a while.
    Proves,
    /// Leaves it until it ends.
    Leaves,
}

/// What somebody does about a payment that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// Gives the invoice in once more.
    Again,
    /// Tries it again.
    Retry,
    /// Asks for a link, which a payer gets.
    Link(Payer),
    /// Changes the amount to this one.
    Change(i64),
    /// Gives it up.
    Cancel,
    /// Records that it was paid elsewhere.
    Manual,
    /// Pays its own intent in Stripe's dashboard.
    ByHand,
}

/// What happens around an invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// It is given in once, though perhaps repeated where no answer came.
    Plain,
    /// Several callers give it in at once, some under the same `request_id`, some under others.
    Repeated,
    /// Nothing is due.
    Nothing,
    /// Less than Stripe takes.
    TooSmall,
    /// It is canceled soon.
    Canceled,
    /// It is canceled soon, and given in anew.
    Reopened,
    /// Somebody pays our own intent in Stripe's dashboard.
    PaidByHand,
    /// Somebody makes a payment of their own for it in Stripe's dashboard.
    PaidBeside,
    /// One or two moves are made, two at the same time, on any of the processes.
    Moves(Move, Option<Move>),
    /// Its amount is changed to this one while a page is open on which this payer pays it.
    Repriced(Payer, i64),
}

impl Script {
    /// Whether somebody asks for it to be given up.
    pub fn withdraws(self) -> bool {
        let cancels = |one: Move| one == Move::Cancel;
        match self {
            Self::Canceled | Self::Reopened => true,
            Self::Moves(first, second) => cancels(first) || second.is_some_and(cancels),
            _ => false,
        }
    }

    /// Whether it says nothing against the invoice's being paid in the end by a customer who can.
    pub fn lets_be_paid(self) -> bool {
        !self.withdraws() && !matches!(self, Self::TooSmall | Self::Moves(..) | Self::Repriced(..))
    }
}

/// An invoice.
#[derive(Clone, Debug)]
pub(super) struct InvoicePlan {
    pub organization: usize,
    /// Which of the organization's customers.
    pub customer: usize,
    pub id: String,
    pub amount: i64,
    pub currency: &'static str,
    pub script: Script,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The customers of each organization.
    pub organizations: Vec<Vec<CustomerPlan>>,
    /// In the order in which they are given in.
    pub invoices: Vec<InvoicePlan>,
}

/// Whether an organization's integration asks customers to prove who they are, where their bank wants it.
pub(super) fn supports_3ds(organization: usize) -> bool {
    organization % 2 == 1
}

/// Whether an organization's integration reads Stripe's list of events in place of webhooks.
pub(super) fn polls(organization: usize) -> bool {
    organization % 3 == 2
}

impl Plan {
    /// The plan of a seed.
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
            let is_foreign = !of[customer].wallet.takes_debits() && rng.chance(20);
            let currency = if is_foreign { "USD" } else { "EUR" };
            let amount = match script {
                Script::Nothing => 0,
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
    let wallet = match rng.below(100) {
        // The first ones are there whatever chance says.
        _ if number < 2 => Wallet::Good,
        _ if number == 2 => Wallet::Bank(rng.pick::<&str>(&IBANS)),
        _ if number == 3 => Wallet::Refused,
        _ if number == 4 => Wallet::DebitsByLink(PAYING_IBANS[0]),
        _ if number == 5 => Wallet::DefaultSource,
        _ if number == 6 => Wallet::Unset(afterwards(rng)),
        0..30 => Wallet::Good,
        30..37 => Wallet::Late,
        37..40 => Wallet::Empty,
        40..49 => Wallet::Refused,
        49..56 => Wallet::WantsProof,
        56..59 => Wallet::Disputed,
        59..75 => Wallet::Bank(rng.pick::<&str>(&IBANS)),
        75..81 => Wallet::Fickle,
        81..84 => Wallet::DebitsByLink(rng.pick::<&str>(&PAYING_IBANS)),
        84..87 => Wallet::DebitsByLink(rng.pick::<&str>(&IBANS)),
        87..90 => Wallet::ImportedDebit,
        90..95 => Wallet::DefaultSource,
        _ => Wallet::Unset(afterwards(rng)),
    };
    CustomerPlan { external_id: format!("customer-{number}"), wallet, is_linked: wallet.is_imported(rng) }
}

fn afterwards(rng: &mut Rng) -> Afterwards {
    *rng.pick(&[Afterwards::Chosen, Afterwards::Added, Afterwards::Nothing])
}

fn script(rng: &mut Rng) -> Script {
    match rng.below(100) {
        0..10 => Script::Repeated,
        10..12 => Script::Nothing,
        12..15 => Script::TooSmall,
        15..18 => Script::Canceled,
        18..20 => Script::Reopened,
        20..23 => Script::PaidByHand,
        23..27 => Script::PaidBeside,
        27..33 => Script::Moves(any_move(rng), None),
        33..55 => Script::Moves(any_move(rng), Some(any_move(rng))),
        55..63 => Script::Repriced(payer_who_pays(rng), any_amount(rng)),
        _ => Script::Plain,
    }
}

fn any_move(rng: &mut Rng) -> Move {
    match rng.below(12) {
        0..4 => Move::Link(payer(rng)),
        4..6 => Move::Change(any_amount(rng)),
        6 => Move::Again,
        7..9 => Move::Retry,
        9 => Move::Cancel,
        10 => Move::Manual,
        _ => Move::ByHand,
    }
}

/// Minor units.
fn any_amount(rng: &mut Rng) -> i64 {
    i64::try_from(rng.between(100, 90_000)).unwrap_or(100)
}

/// Somebody who gets a link.
pub(super) fn payer(rng: &mut Rng) -> Payer {
    if rng.chance(20) { Payer::Leaves } else { payer_who_pays(rng) }
}

fn payer_who_pays(rng: &mut Rng) -> Payer {
    match rng.below(10) {
        0..4 => Payer::Pays,
        4..6 => Payer::IsDeclinedFirst,
        6..8 => Payer::Debits(rng.pick::<&str>(&IBANS)),
        _ => Payer::Proves,
    }
}
