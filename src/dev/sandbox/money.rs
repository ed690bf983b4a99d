//! Currencies, and the limits of amounts.

use super::api_error::ApiError;

const ZERO_DECIMALS: &[&str] =
    &["bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"];
const THREE_DECIMALS: &[&str] = &["bhd", "jod", "kwd", "omr", "tnd"];
const TWO_DECIMALS: &[&str] = &[
    "aed", "afn", "all", "amd", "ang", "aoa", "ars", "aud", "awg", "azn", "bam", "bbd", "bdt", "bgn", "bmd", "bnd",
    "bob", "brl", "bsd", "bwp", "byn", "bzd", "cad", "cdf", "chf", "cny", "cop", "crc", "cve", "czk", "dkk", "dop",
    "dzd", "egp", "etb", "eur", "fjd", "fkp", "gbp", "gel", "ghs", "gip", "gmd", "gtq", "gyd", "hkd", "hnl", "htg",
    "huf", "idr", "ils", "inr", "isk", "jmd", "kes", "kgs", "khr", "kyd", "kzt", "lak", "lbp", "lkr", "lrd", "lsl",
    "mad", "mdl", "mkd", "mmk", "mnt", "mop", "mur", "mvr", "mwk", "mxn", "myr", "mzn", "nad", "ngn", "nio", "nok",
    "npr", "nzd", "pab", "pen", "pgk", "php", "pkr", "pln", "qar", "ron", "rsd", "rub", "sar", "sbd", "scr", "sek",
    "sgd", "shp", "sle", "sos", "srd", "std", "svc", "szl", "thb", "tjs", "top", "try", "ttd", "twd", "tzs", "uah",
    "ugx", "usd", "uyu", "uzs", "wst", "xcd", "xcg", "yer", "zar", "zmw",
];

/// Stripe's minimum charge amounts, in minor units.
const MINIMUM: &[(&str, i64)] = &[
    ("usd", 50),
    ("eur", 50),
    ("chf", 50),
    ("cad", 50),
    ("aud", 50),
    ("nzd", 50),
    ("sgd", 50),
    ("brl", 50),
    ("inr", 50),
    ("gbp", 30),
    ("aed", 200),
    ("pln", 200),
    ("ron", 200),
    ("myr", 200),
    ("dkk", 250),
    ("nok", 300),
    ("sek", 300),
    ("hkd", 400),
    ("mxn", 1000),
    ("thb", 1000),
    ("czk", 1500),
    ("huf", 17500),
    ("jpy", 50),
    ("krw", 50),
];

/// The maximum amount of a card charge: twelve digits.
const AMOUNT_MAX: i64 = 999_999_999_999;

/// The maximum amount of a SEPA debit: 10,000 EUR.
pub(super) const DEBIT_MAX: i64 = 1_000_000;

/// The currency in lower case, if Stripe supports it.
pub(super) fn currency(given: &str) -> Result<String, ApiError> {
    let lower = given.to_lowercase();
    if [ZERO_DECIMALS, THREE_DECIMALS, TWO_DECIMALS].iter().any(|known| known.contains(&lower.as_str())) {
        return Ok(lower);
    }
    let known = [TWO_DECIMALS, ZERO_DECIMALS, THREE_DECIMALS].concat().join(", ");
    let message = format!("Invalid currency: {lower}. Stripe currently supports these currencies: {known}");
    Err(ApiError::invalid(message).at("currency").before_execution())
}

/// Checks that the amount can be charged in the currency.
pub(super) fn check_amount(amount: i64, currency: &str, param: &str) -> Result<(), ApiError> {
    if amount < 1 {
        let message = "This value must be greater than or equal to 1.";
        return Err(ApiError::invalid(message).code("parameter_invalid_integer").at(param).before_execution());
    }
    if amount > AMOUNT_MAX {
        let message = "Amount must be no more than 999,999,999,999.";
        return Err(ApiError::invalid(message).code("amount_too_large").at(param).before_execution());
    }
    let minimum = MINIMUM.iter().find(|(known, _)| *known == currency).map_or(1, |(_, minimum)| *minimum);
    if amount < minimum {
        let message = format!("Amount must be at least {} {currency}", format_amount(minimum, currency));
        return Err(ApiError::invalid(message).code("amount_too_small").at(param).before_execution());
    }
    let round = match currency {
        "isk" | "ugx" => 100,
        currency if THREE_DECIMALS.contains(&currency) => 10,
        _ => 1,
    };
    if amount % round != 0 {
        let message = format!("Invalid amount: amounts in {currency} must be divisible by {round}.");
        return Err(ApiError::invalid(message).at(param).before_execution());
    }
    Ok(())
}

/// Formats an amount in major units: `49.00`.
pub(super) fn format_amount(amount: i64, currency: &str) -> String {
    let decimals = match currency {
        currency if ZERO_DECIMALS.contains(&currency) => return amount.to_string(),
        currency if THREE_DECIMALS.contains(&currency) => 3,
        _ => 2,
    };
    let unit = 10_i64.pow(decimals);
    let width = usize::try_from(decimals).unwrap_or(2);
    format!("{}.{:0width$}", amount / unit, amount % unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_decimals_of_their_currency() {
        assert_eq!(format_amount(4900, "eur"), "49.00");
        assert_eq!(format_amount(4900, "jpy"), "4900");
        assert_eq!(format_amount(1230, "kwd"), "1.230");
    }

    #[test]
    fn amounts_outside_stripes_limits_are_rejected() {
        assert!(check_amount(49, "eur", "amount").is_err());
        assert!(check_amount(50, "eur", "amount").is_ok());
        assert!(check_amount(1235, "kwd", "amount").is_err());
        assert!(check_amount(AMOUNT_MAX + 1, "eur", "amount").is_err());
        assert!(currency("xyz").is_err());
        for (amount, currency) in [(1, "isk"), (150, "ugx"), (5001, "kwd")] {
            assert!(check_amount(amount, currency, "amount").is_err(), "{amount} {currency}");
        }
    }
}
