//! Money: an integer number of minor units and a currency, never a float.

use std::fmt;

/// Every currency that Stripe charges in anywhere: the list in Stripe's error for an unknown currency ("Stripe
/// currently supports these currencies: …") and <https://docs.stripe.com/currencies>, without those replaced long ago.
/// Recently replaced ones may still appear on invoices. Which of them an account accepts is for Stripe to decide.
const SUPPORTED: &str = "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN \
    BZD CAD CDF CHF CLP CNY COP CRC CVE CZK DJF DKK DOP DZD EGP ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG \
    HUF IDR ILS INR ISK JMD JOD JPY KES KGS KHR KMF KRW KWD KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MUR \
    MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SEK SGD \
    SHP SLE SOS SRD STD SVC SZL THB TJS TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VND VUV WST XAF XCD XCG XOF XPF YER \
    ZAR ZMW";

/// An ISO 4217 code: three upper-case letters. Codes from Stripe are accepted as they are; codes from callers must also
/// pass [`Currency::is_supported`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// The euro, the only currency of SEPA Direct Debit.
    pub const EUR: Self = Self(*b"EUR");

    /// Parses three letters of either case.
    pub fn parse(code: &str) -> Option<Self> {
        let bytes: [u8; 3] = code.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphabetic).then(|| Self(bytes.map(|byte| byte.to_ascii_uppercase())))
    }

    /// The code in upper case, as in our API.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }

    /// The code in lower case, as in Stripe's API.
    pub fn to_lower(&self) -> String {
        self.as_str().to_ascii_lowercase()
    }

    /// Whether Stripe charges in this currency anywhere.
    pub fn is_supported(self) -> bool {
        SUPPORTED.split(' ').any(|code| code == self.as_str())
    }

    /// The number of minor units that every amount in this currency must be a multiple of, and why. See Stripe's
    /// special cases, <https://docs.stripe.com/currencies#special-cases>.
    fn granularity(self) -> (i64, &'static str) {
        match &self.0 {
            b"ISK" | b"UGX" => (100, "two decimals, and Stripe accepts whole units only: 100000 is 1,000"),
            b"BHD" | b"JOD" | b"KWD" | b"OMR" | b"TND" => (10, "three decimals, the last of which is 0: 5000 is 5.000"),
            _ => (1, ""),
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

/// An amount in minor units as Stripe counts them, which differs from ISO 4217 in places: cents for EUR, whole yen for
/// JPY, hundredths for ISK and UGX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Money {
    /// The number of minor units; negative amounts are rejected by [`Money::rejection`].
    pub minor_units: i64,
    /// The currency, which defines the minor unit.
    pub currency: Currency,
}

impl Money {
    /// The largest amount that Stripe accepts in one charge: twelve digits.
    pub const MINOR_UNITS_MAX: i64 = 999_999_999_999;

    /// Why this amount cannot be an invoice's; `None` if it can.
    pub fn rejection(&self) -> Option<String> {
        if self.minor_units < 0 {
            return Some("must not be negative; a refund is not a payment".to_owned());
        }
        if self.minor_units > Self::MINOR_UNITS_MAX {
            return Some(format!("must be at most {}", Self::MINOR_UNITS_MAX));
        }
        let (step, why) = self.currency.granularity();
        let below = self.minor_units - self.minor_units % step;
        (below != self.minor_units).then(|| {
            let (currency, above) = (self.currency, below + step);
            format!("must be a multiple of {step} in {currency}, such as {below} or {above}: its amounts have {why}")
        })
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
    fn amounts_that_stripe_never_accepts_are_rejected() {
        let money = |minor_units, code| Money { minor_units, currency: Currency::parse(code).unwrap() };
        assert_eq!(money(4900, "EUR").rejection(), None);
        assert_eq!(money(0, "EUR").rejection(), None);
        for bad in [money(-1, "EUR"), money(1_000_000_000_000, "EUR"), money(4950, "ISK"), money(4901, "KWD")] {
            assert!(bad.rejection().is_some(), "{bad}");
        }
        assert_eq!(money(100_000, "ISK").rejection(), None, "1,000 krónur");
        assert_eq!(money(1_000, "JPY").rejection(), None, "1,000 yen");
        let rejection = money(5001, "KWD").rejection().unwrap();
        assert!(rejection.contains("5000 or 5010"), "{rejection}");
    }

    #[test]
    fn the_tables_for_callers_list_the_special_cases() {
        let page = include_str!("../../docs/api.md");
        let proto = include_str!("../../proto/paybridge/v1/money.proto");
        for step in [10, 100] {
            let is_special = |code: &&str| Currency::parse(code).unwrap().granularity().0 == step;
            let codes: Vec<&str> = SUPPORTED.split(' ').filter(is_special).collect();
            let row = format!("| {} |", codes.join(" "));
            assert!(!codes.is_empty() && page.contains(&row) && proto.contains(&row), "{row}");
        }
    }

    #[test]
    fn only_currencies_that_stripe_charges_in_are_supported() {
        let is_supported = |code| Currency::parse(code).unwrap().is_supported();
        for code in ["EUR", "usd", "JPY", "ISK", "UGX", "KWD", "ZMW", "XAF", "AED"] {
            assert!(is_supported(code), "{code}");
        }
        for code in ["XXQ", "XXX", "XAU", "DEM", "HRK", "BTC"] {
            assert!(!is_supported(code), "{code}");
        }
        let codes: Vec<&str> = SUPPORTED.split(' ').collect();
        assert!(codes.is_sorted_by(|left, right| left < right), "each once, in order");
        assert!(codes.iter().all(|code| Currency::parse(code).is_some()));
    }
}
