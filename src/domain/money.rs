//! Money: whole minor units and a currency, never a float.

use std::fmt;

/// An ISO 4217 code, three upper-case letters. Whether Stripe takes it is for Stripe to say.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// The euro: the only currency of SEPA Direct Debit.
    pub const EUR: Self = Self(*b"EUR");

    /// Parses three letters of either case.
    pub fn parse(code: &str) -> Option<Self> {
        let bytes: [u8; 3] = code.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphabetic).then(|| Self(bytes.map(|byte| byte.to_ascii_uppercase())))
    }

    /// The code in upper case, as our API writes it.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }

    /// The code in lower case, as Stripe writes it.
    pub fn to_lower(&self) -> String {
        self.as_str().to_ascii_lowercase()
    }

    /// Minor units that every amount in this currency must be a multiple of (Stripe's "special case" currencies: ISK
    /// and UGX have no minor unit but are written with two decimals; the three-decimal ones end in 0).
    fn granularity(self) -> i64 {
        match &self.0 {
            b"ISK" | b"UGX" => 100,
            b"BHD" | b"JOD" | b"KWD" | b"OMR" | b"TND" => 10,
            _ => 1,
        }
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount in the currency's minor units (cents; whole yen for JPY).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Money {
    /// Minor units.
    pub minor_units: i64,
    /// The currency.
    pub currency: Currency,
}

impl Money {
    /// The most that Stripe takes in one charge: twelve digits.
    pub const MAX_MINOR_UNITS: i64 = 999_999_999_999;

    /// Why this amount can't be an invoice's, if it can't.
    pub fn objection(&self) -> Option<String> {
        if self.minor_units < 0 {
            return Some("must not be negative; a refund is not a payment".to_owned());
        }
        if self.minor_units > Self::MAX_MINOR_UNITS {
            return Some(format!("must be at most {}", Self::MAX_MINOR_UNITS));
        }
        let granularity = self.currency.granularity();
        (self.minor_units % granularity != 0)
            .then(|| format!("must be a multiple of {granularity} in {}", self.currency))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (minor units)", self.minor_units, self.currency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn currencies_are_three_letters_of_either_case() {
        assert_eq!(Currency::parse("eur"), Some(Currency::EUR));
        for bad in ["", "EU", "EURO", "E1R", "€€"] {
            assert_eq!(Currency::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn amounts_that_stripe_could_never_take_are_objected_to() {
        let money = |minor_units, code| Money { minor_units, currency: Currency::parse(code).unwrap() };
        assert_eq!(money(4900, "EUR").objection(), None);
        assert_eq!(money(0, "EUR").objection(), None);
        for bad in [money(-1, "EUR"), money(1_000_000_000_000, "EUR"), money(4950, "ISK"), money(4901, "KWD")] {
            assert!(bad.objection().is_some(), "{bad}");
        }
    }
}
