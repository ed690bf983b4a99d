//! Stripe's test cards and test bank accounts, and their behavior.

/// A decline by a bank or by Radar.
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
    /// The error's `message`.
    pub message: &'static str,
    /// Blocked by Radar rather than by the bank.
    pub blocked: bool,
}

/// When a card requires authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Authentication {
    Never,
    /// Always. Off-session charges are declined.
    Always,
    /// For setup and on-session charges. Off-session charges are declined unless the card was set up.
    UnlessSetUp,
    /// For on-session charges only.
    OnSession,
}

/// What follows a successful charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowUp {
    None,
    /// This many disputes with this reason.
    Dispute(&'static str, u8),
    /// An inquiry: a dispute that has not withdrawn money yet.
    Inquiry,
    FraudWarning,
    /// Refunds stay pending for a while.
    RefundPending,
    /// Refunds succeed and fail later.
    RefundFails,
}

/// One token of a test card.
#[derive(Debug, Clone, Copy)]
pub(super) struct Card {
    /// Without the prefix `pm_card_` or `tok_`.
    pub token: &'static str,
    pub number: &'static str,
    pub brand: &'static str,
    pub funding: &'static str,
    pub country: &'static str,
    pub authentication: Authentication,
    /// Declines every charge.
    pub charge: Option<Decline>,
    /// The decline applies to attachment and setup, too.
    pub declines_setup: bool,
    pub follow_up: FollowUp,
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
/// The decline of an off-session charge that requires authentication.
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
        declines_setup: false,
        follow_up: FollowUp::None,
    }
}

const fn declines(token: &'static str, number: &'static str, decline: Decline) -> Card {
    Card { charge: Some(decline), declines_setup: true, ..card(token, number, "visa", "US") }
}

const fn authenticates(token: &'static str, number: &'static str, authentication: Authentication) -> Card {
    Card { authentication, ..card(token, number, "visa", "US") }
}

const fn with_follow_up(token: &'static str, number: &'static str, follow_up: FollowUp) -> Card {
    Card { follow_up, ..card(token, number, "visa", "US") }
}

const fn from_country(country: &'static str, token: &'static str, number: &'static str) -> Card {
    card(token, number, "visa", country)
}

/// All test cards. Where two tokens have the same number, the second is an alias.
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
    from_country("US", "us", "4242424242424242"),
    from_country("DE", "de", "4000002760000016"),
    from_country("FR", "fr", "4000002500000003"),
    from_country("GB", "gb", "4000008260000000"),
    from_country("AT", "at", "4000000400000008"),
    from_country("BE", "be", "4000000560000004"),
    from_country("ES", "es", "4000007240000007"),
    from_country("IT", "it", "4000003800000008"),
    from_country("NL", "nl", "4000005280000002"),
    from_country("CH", "ch", "4000007560000009"),
    from_country("IE", "ie", "4000003720000005"),
    from_country("PT", "pt", "4000006200000007"),
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
    Card { declines_setup: false, ..declines("chargeCustomerFail", "4000000000000341", GENERIC) },
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
    with_follow_up("createDispute", "4000000000000259", FollowUp::Dispute("fraudulent", 1)),
    with_follow_up("createDisputeProductNotReceived", "4000000000002685", FollowUp::Dispute("product_not_received", 1)),
    with_follow_up("createDisputeInquiry", "4000000000001976", FollowUp::Inquiry),
    with_follow_up("createIssuerFraudRecord", "4000000000005423", FollowUp::FraudWarning),
    with_follow_up("createMultipleDisputes", "4000000404000079", FollowUp::Dispute("fraudulent", 2)),
    with_follow_up("pendingRefund", "4000000000007726", FollowUp::RefundPending),
    with_follow_up("refundFail", "4000000000005126", FollowUp::RefundFails),
    card("bypassPending", "4000000000000077", "visa", "US"),
];

/// The outcome of a debit of a test bank account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Debit {
    /// `processing`, then `succeeded`.
    Succeeds,
    /// Like `Succeeds`, after twice the time.
    SucceedsLate,
    /// `processing`, then failed with this `failure_code`.
    Fails(&'static str),
    /// Like `Fails`, after twice the time.
    FailsLate(&'static str),
    /// Succeeds, and is disputed at once.
    Disputed,
    /// Rejected at once with this error code.
    Exceeds(&'static str),
}

const WRONG_NAME: &str = "incorrect_account_holder_name";

/// Test bank accounts: the test id without `pm_` and the country, the IBAN, and the outcome of a debit.
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
    // Stripe's CLI uses this one to trigger `checkout.session.async_payment_failed`.
    ("failed", "IT60X0542811101000000123456", Debit::Fails(WRONG_NAME)),
    ("success", "IE29AIBK93115212345678", Debit::Succeeds),
];

/// The card number or IBAN of a test payment method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TestMethod<'a> {
    Card(&'a str),
    Iban(&'a str),
}

/// The number behind one of Stripe's shared test ids: `pm_card_…`, `tok_…`, `pm_success_de` and the like.
pub(super) fn shared(id: &str) -> Option<TestMethod<'static>> {
    let named = |name: &str| CARDS.iter().find(|card| card.token == name);
    if let Some(card) = id.strip_prefix("pm_card_").or_else(|| id.strip_prefix("tok_")).and_then(named) {
        // Two test cards have the same number. A placeholder for the number tells them apart.
        return Some(TestMethod::Card(if card.token == "chargeDeclinedFraudulent" {
            "fraudulent"
        } else {
            card.number
        }));
    }
    let (name, country) = id.strip_prefix("pm_")?.rsplit_once('_')?;
    let matches = |iban: &str| iban.len() > 2 && iban[..2].eq_ignore_ascii_case(country);
    IBANS.iter().find(|(known, iban, _)| *known == name && matches(iban)).map(|(_, iban, _)| TestMethod::Iban(iban))
}

/// The test card with this number.
pub(super) fn card_by_number(number: &str) -> Option<&'static Card> {
    if number == "fraudulent" {
        return CARDS.iter().find(|card| card.token == "chargeDeclinedFraudulent");
    }
    CARDS.iter().find(|card| card.number == number && card.token != "chargeDeclinedFraudulent")
}

/// The outcome of debits of this account. Debits of an unknown account succeed.
pub(super) fn debit_outcome(iban: &str) -> Debit {
    IBANS.iter().find(|(_, known, _)| *known == iban).map_or(Debit::Succeeds, |(_, _, debit)| *debit)
}

/// Whether this is a valid IBAN: one of Stripe's test accounts, or one with correct check digits.
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
    fn shared_ids_resolve_to_numbers() {
        assert_eq!(shared("pm_card_visa"), Some(TestMethod::Card("4242424242424242")));
        assert_eq!(shared("pm_success_de"), Some(TestMethod::Iban("DE89370400440532013000")));
        assert_eq!(shared("pm_card_nothing"), None);
        assert_eq!(shared("pm_1abc"), None);
    }

    #[test]
    fn every_card_is_found_by_its_number() {
        for card in CARDS {
            let found = match shared(&format!("pm_card_{}", card.token)) {
                Some(TestMethod::Card(number)) => card_by_number(number).unwrap(),
                other => panic!("{} resolves to {other:?}", card.token),
            };
            assert_eq!((found.charge, found.authentication), (card.charge, card.authentication), "{}", card.token);
        }
    }

    #[test]
    fn ibans_are_validated_by_check_digits() {
        assert!(is_iban("GB82WEST12345698765432"));
        assert!(!is_iban("GB82WEST12345698765433"));
        assert!(!is_iban("DE1"));
        for (_, iban, _) in IBANS {
            assert!(is_iban(iban));
        }
    }
}
