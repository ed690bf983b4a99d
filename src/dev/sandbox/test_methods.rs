//! Stripe's test cards and test bank accounts, and how each behaves.

/// How a bank or Stripe refuses a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decline {
    /// The error's `code`.
    pub code: &'static str,
    /// `decline_code`.
    pub bank_code: &'static str,
    /// `advice_code`; empty if there is none.
    pub advice: &'static str,
    /// The error's `param`; empty if there is none.
    pub param: &'static str,
    /// What the payer is told.
    pub message: &'static str,
    /// Blocked by Radar rather than by the bank.
    pub blocked: bool,
}

/// When a card asks its holder to prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Authentication {
    Never,
    /// Always; off session that means a refusal.
    Always,
    /// When it is set up and whenever the payer is there; off session only if it was never set up.
    UnlessSetUp,
    /// Whenever the payer is there, but neither off session nor to be set up.
    OnSession,
}

/// What comes after a successful charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aftermath {
    Nothing,
    /// As many disputes, for this reason.
    Dispute(&'static str, u8),
    /// An inquiry: a dispute that has moved no money yet.
    Inquiry,
    FraudWarning,
    /// Refunds stay pending for a while.
    RefundPending,
    /// Refunds succeed and fail later.
    RefundFails,
}

/// A test card.
#[derive(Debug, Clone, Copy)]
pub(super) struct Card {
    /// What follows `pm_card_`.
    pub token: &'static str,
    pub number: &'static str,
    pub brand: &'static str,
    pub funding: &'static str,
    pub country: &'static str,
    pub authentication: Authentication,
    /// Why charges are refused.
    pub charge: Option<Decline>,
    /// Whether the bank refuses it already when it is attached or set up.
    pub refuses_setup: bool,
    pub aftermath: Aftermath,
}

const fn decline(code: &'static str, bank_code: &'static str, advice: &'static str, message: &'static str) -> Decline {
    Decline { code, bank_code, advice, param: "", message, blocked: false }
}

const DECLINED: &str = "Your card was declined.";
const GENERIC: Decline = decline("card_declined", "generic_decline", "try_again_later", DECLINED);
const FUNDS: Decline =
    decline("card_declined", "insufficient_funds", "try_again_later", "Your card has insufficient funds.");
const LOST: Decline = decline("card_declined", "lost_card", "do_not_try_again", DECLINED);
const STOLEN: Decline = decline("card_declined", "stolen_card", "do_not_try_again", DECLINED);
const VELOCITY: Decline = decline(
    "card_declined",
    "card_velocity_exceeded",
    "try_again_later",
    "Your card was declined for making repeated attempts too frequently or exceeding its amount limit.",
);
const FRAUDULENT: Decline = decline("card_declined", "fraudulent", "", DECLINED);
const BLOCKED: Decline = Decline { blocked: true, ..FRAUDULENT };
const EXPIRED: Decline = Decline {
    param: "exp_month",
    ..decline("expired_card", "expired_card", "confirm_card_data", "Your card has expired.")
};
const CVC: Decline = Decline {
    param: "cvc",
    ..decline("incorrect_cvc", "incorrect_cvc", "confirm_card_data", "Your card's security code is incorrect.")
};
const PROCESSING: Decline = decline(
    "processing_error",
    "processing_error",
    "try_again_later",
    "An error occurred while processing your card. Try again in a little bit.",
);
/// What an off-session charge of a card that wants its holder gets.
pub(super) const AUTHENTICATION_REQUIRED: Decline = decline(
    "authentication_required",
    "authentication_required",
    "",
    "Your card was declined. This transaction requires authentication.",
);
/// The same with `error_on_requires_action`.
pub(super) const AUTHENTICATION_NOT_HANDLED: Decline =
    Decline { bank_code: "authentication_not_handled", ..AUTHENTICATION_REQUIRED };

const fn card(token: &'static str, number: &'static str, brand: &'static str, country: &'static str) -> Card {
    Card {
        token,
        number,
        brand,
        funding: "credit",
        country,
        authentication: Authentication::Never,
        charge: None,
        refuses_setup: false,
        aftermath: Aftermath::Nothing,
    }
}

const fn declines(token: &'static str, number: &'static str, decline: Decline) -> Card {
    Card { charge: Some(decline), refuses_setup: true, ..card(token, number, "visa", "US") }
}

const fn authenticates(token: &'static str, number: &'static str, authentication: Authentication) -> Card {
    Card { authentication, ..card(token, number, "visa", "US") }
}

const fn then(token: &'static str, number: &'static str, aftermath: Aftermath) -> Card {
    Card { aftermath, ..card(token, number, "visa", "US") }
}

const fn of(country: &'static str, token: &'static str, number: &'static str) -> Card {
    card(token, number, "visa", country)
}

/// All test cards. Where a token stands twice for a number, the first is its own name and the second an alias.
pub(super) const CARDS: &[Card] = &[
    card("visa", "4242424242424242", "visa", "US"),
    Card { funding: "debit", ..card("visa_debit", "4000056655665556", "visa", "US") },
    card("mastercard", "5555555555554444", "mastercard", "US"),
    Card { funding: "debit", ..card("mastercard_debit", "5200828282828210", "mastercard", "US") },
    Card { funding: "prepaid", ..card("mastercard_prepaid", "5105105105105100", "mastercard", "US") },
    card("amex", "378282246310005", "amex", "US"),
    card("discover", "6011111111111117", "discover", "US"),
    card("diners", "3056930009020004", "diners", "US"),
    card("jcb", "3566002020360505", "jcb", "US"),
    card("unionpay", "6200000000000005", "unionpay", "US"),
    of("US", "us", "4242424242424242"),
    of("DE", "de", "4000002760000016"),
    of("FR", "fr", "4000002500000003"),
    of("GB", "gb", "4000008260000000"),
    of("AT", "at", "4000000400000008"),
    of("BE", "be", "4000000560000004"),
    of("ES", "es", "4000007240000007"),
    of("IT", "it", "4000003800000008"),
    of("NL", "nl", "4000005280000002"),
    of("CH", "ch", "4000007560000009"),
    of("IE", "ie", "4000003720000005"),
    of("PT", "pt", "4000006200000007"),
    declines("visa_chargeDeclined", "4000000000000002", GENERIC),
    declines("chargeDeclined", "4000000000000002", GENERIC),
    declines("visa_chargeDeclinedInsufficientFunds", "4000000000009995", FUNDS),
    declines("chargeDeclinedInsufficientFunds", "4000000000009995", FUNDS),
    declines("visa_chargeDeclinedLostCard", "4000000000009987", LOST),
    declines("chargeDeclinedLostCard", "4000000000009987", LOST),
    declines("visa_chargeDeclinedStolenCard", "4000000000009979", STOLEN),
    declines("chargeDeclinedStolenCard", "4000000000009979", STOLEN),
    declines("chargeDeclinedExpiredCard", "4000000000000069", EXPIRED),
    declines("chargeDeclinedIncorrectCvc", "4000000000000127", CVC),
    declines("chargeDeclinedProcessingError", "4000000000000119", PROCESSING),
    declines("visa_chargeDeclinedVelocityLimitExceeded", "4000000000006975", VELOCITY),
    declines("chargeDeclinedVelocityLimitExceeded", "4000000000006975", VELOCITY),
    declines("chargeDeclinedFraudulent", "4100000000000019", FRAUDULENT),
    declines("radarBlock", "4100000000000019", BLOCKED),
    Card { refuses_setup: false, ..declines("chargeCustomerFail", "4000000000000341", GENERIC) },
    authenticates("authenticationRequiredOnSetup", "4000002500003155", Authentication::UnlessSetUp),
    authenticates("authenticationRequired", "4000002760003184", Authentication::Always),
    authenticates("authenticationRequiredSetupForOffSession", "4000003800000446", Authentication::OnSession),
    Card {
        charge: Some(FUNDS),
        ..authenticates(
            "authenticationRequiredChargeDeclinedInsufficientFunds",
            "4000008260003178",
            Authentication::Always,
        )
    },
    authenticates("threeDSecure2Required", "4000000000003220", Authentication::Always),
    authenticates("threeDSecureRequired", "4000000000003063", Authentication::Always),
    Card {
        charge: Some(GENERIC),
        ..authenticates("threeDSecureRequiredChargeDeclined", "4000008400001629", Authentication::Always)
    },
    declines("threeDSecureRequiredProcessingError", "4000008400001280", GENERIC),
    then("createDispute", "4000000000000259", Aftermath::Dispute("fraudulent", 1)),
    then("createDisputeProductNotReceived", "4000000000002685", Aftermath::Dispute("product_not_received", 1)),
    then("createDisputeInquiry", "4000000000001976", Aftermath::Inquiry),
    then("createIssuerFraudRecord", "4000000000005423", Aftermath::FraudWarning),
    then("createMultipleDisputes", "4000000404000079", Aftermath::Dispute("fraudulent", 2)),
    then("pendingRefund", "4000000000007726", Aftermath::RefundPending),
    then("refundFail", "4000000000005126", Aftermath::RefundFails),
    card("bypassPending", "4000000000000077", "visa", "US"),
];

/// How a debit of a test bank account ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Debit {
    /// `processing`, then paid.
    Succeeds,
    /// The same, after twice the time.
    SucceedsLate,
    /// `processing`, then refused with this `failure_code`.
    Fails(&'static str),
    /// The same, after twice the time.
    FailsLate(&'static str),
    /// Paid, and disputed at once.
    Disputed,
    /// Refused at once with this code.
    Exceeds(&'static str),
}

const WRONG_NAME: &str = "incorrect_account_holder_name";

/// Test bank accounts: what follows `pm_`, without the country; the IBAN; its behaviour.
pub(super) const IBANS: &[(&str, &str, Debit)] = &[
    ("success", "DE89370400440532013000", Debit::Succeeds),
    ("successDelayed", "DE08370400440532013003", Debit::SucceedsLate),
    ("failed", "DE62370400440532013001", Debit::Fails(WRONG_NAME)),
    ("failedDelayed", "DE78370400440532013004", Debit::FailsLate(WRONG_NAME)),
    ("disputed", "DE35370400440532013002", Debit::Disputed),
    ("exceedsSourceLimit", "DE65370400440000343434", Debit::Exceeds("charge_exceeds_source_limit")),
    ("exceedsWeeklyLimit", "DE27370400440000121212", Debit::Exceeds("charge_exceeds_weekly_limit")),
    ("insufficientFunds", "DE65370400440002222227", Debit::Fails("insufficient_funds")),
    ("success", "AT611904300234573201", Debit::Succeeds),
    ("success", "FR1420041010050500013M02606", Debit::Succeeds),
    ("success", "NL39RABO0300065264", Debit::Succeeds),
    ("success", "BE62510007547061", Debit::Succeeds),
    ("success", "ES0700120345030000067890", Debit::Succeeds),
    ("success", "IT40S0542811101000000123456", Debit::Succeeds),
    // By it Stripe's CLI brings about `checkout.session.async_payment_failed`.
    ("failed", "IT60X0542811101000000123456", Debit::Fails(WRONG_NAME)),
    ("success", "IE29AIBK93115212345678", Debit::Succeeds),
];

/// What a test id, a card number or an IBAN stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known<'a> {
    Card(&'a str),
    Iban(&'a str),
}

/// The number behind one of Stripe's shared test ids: `pm_card_…`, `tok_…`, `pm_success_de` and the like.
pub(super) fn shared(id: &str) -> Option<Known<'static>> {
    let named = |name: &str| CARDS.iter().find(|card| card.token == name);
    if let Some(card) = id.strip_prefix("pm_card_").or_else(|| id.strip_prefix("tok_")).and_then(named) {
        // Two cards share Radar's number; the name decides, so it goes with the number.
        return Some(Known::Card(if card.token == "chargeDeclinedFraudulent" { "fraudulent" } else { card.number }));
    }
    let (name, country) = id.strip_prefix("pm_")?.rsplit_once('_')?;
    let matches = |iban: &str| iban.len() > 2 && iban[..2].eq_ignore_ascii_case(country);
    IBANS.iter().find(|(known, iban, _)| *known == name && matches(iban)).map(|(_, iban, _)| Known::Iban(iban))
}

/// The card with this number.
pub(super) fn card_of(number: &str) -> Option<&'static Card> {
    if number == "fraudulent" {
        return CARDS.iter().find(|card| card.token == "chargeDeclinedFraudulent");
    }
    CARDS.iter().find(|card| card.number == number && card.token != "chargeDeclinedFraudulent")
}

/// How debits of this account end. An account that isn't a test account of Stripe's pays.
pub(super) fn debit_of(iban: &str) -> Debit {
    IBANS.iter().find(|(_, known, _)| *known == iban).map_or(Debit::Succeeds, |(_, _, debit)| *debit)
}

/// Whether an IBAN can be one: known to Stripe's tests, or its check digits are right.
pub(super) fn is_iban(iban: &str) -> bool {
    if IBANS.iter().any(|(_, known, _)| *known == iban) {
        return true;
    }
    if !(15..=34).contains(&iban.len()) || !iban.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    let (start, rest) = iban.split_at(4);
    let remainder = rest.chars().chain(start.chars()).try_fold(0_u32, |sum, letter| {
        let value = letter.to_digit(36)?;
        Some((sum * if value > 9 { 100 } else { 10 } + value) % 97)
    });
    iban[..2].bytes().all(|byte| byte.is_ascii_uppercase()) && remainder == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_ids_lead_to_their_numbers() {
        assert_eq!(shared("pm_card_visa"), Some(Known::Card("4242424242424242")));
        assert_eq!(shared("pm_success_de"), Some(Known::Iban("DE89370400440532013000")));
        assert_eq!(shared("pm_card_nothing"), None);
        assert_eq!(shared("pm_1abc"), None);
    }

    #[test]
    fn every_card_is_found_by_its_number() {
        for card in CARDS {
            let found = match shared(&format!("pm_card_{}", card.token)) {
                Some(Known::Card(number)) => card_of(number).unwrap(),
                other => panic!("{} leads to {other:?}", card.token),
            };
            assert_eq!((found.charge, found.authentication), (card.charge, card.authentication), "{}", card.token);
        }
    }

    #[test]
    fn check_digits_are_checked() {
        assert!(is_iban("GB82WEST12345698765432"));
        assert!(!is_iban("GB82WEST12345698765433"));
        assert!(!is_iban("DE1"));
        for (_, iban, _) in IBANS {
            assert!(is_iban(iban));
        }
    }
}
