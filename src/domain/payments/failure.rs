//! Why an attempt was refused.

/// Why an attempt was refused: by Stripe, in its own words, or by a rule of Paybridge's, with a code of Paybridge's.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// Stripe's `code`, or one of Paybridge's: `no_payment_method`, `no_provider_customer`,
    /// `payment_method_not_usable`, `mandate_missing`, `payment_url_expired`, `payment_url_closed`, `action_expired`.
    pub code: String,
    /// A description for people.
    pub message: String,
    /// The issuer's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decline_code: Option<String>,
    /// Stripe's advice: `try_again_later`, `do_not_try_again`, `confirm_card_data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice_code: Option<String>,
    /// The card network's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_decline_code: Option<String>,
    /// The request parameter that Stripe rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// Stripe's `ch_…` of the refused attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_charge_id: Option<String>,
    /// Stripe's `req_…`, for Stripe's support.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_request_id: Option<String>,
    /// The HTTP status of Stripe's response, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
}

impl Failure {
    /// The customer has no usable payment method. Retried automatically, once, when one arrives.
    pub const NO_PAYMENT_METHOD: &'static str = "no_payment_method";
    /// Stripe did not create the page of a link.
    pub const PAYMENT_URL_FAILED: &'static str = "payment_url_failed";
    /// A caller ended the link by changing the amount.
    pub(in crate::domain) const PAYMENT_URL_CLOSED: &'static str = "payment_url_closed";
    /// The mandate of a SEPA method has ended, or Stripe refuses the debit because it has no mandate.
    pub const MANDATE_MISSING: &'static str = "mandate_missing";
    /// Stripe's code if the bank requires the customer to authenticate.
    const AUTHENTICATION_REQUIRED: &'static str = "authentication_required";

    /// The code that reports an error of Stripe's: Stripe's own, except that a mandate which is not accepted has one
    /// code, whoever detects it.
    pub fn code_of(stripes: &str) -> &str {
        if stripes == "payment_intent_mandate_invalid" { Self::MANDATE_MISSING } else { stripes }
    }

    /// A refusal by a rule of Paybridge's.
    pub fn ours(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), ..Self::default() }
    }

    /// The failure of a customer without a payment method.
    pub fn no_payment_method() -> Self {
        let text = "the customer has no payment method; the payment is retried automatically when one arrives";
        Self::ours(Self::NO_PAYMENT_METHOD, text)
    }

    /// Whether it is [`Failure::NO_PAYMENT_METHOD`].
    pub fn lacks_method(&self) -> bool {
        self.code == Self::NO_PAYMENT_METHOD
    }

    /// Whether the issuer advised not to try this method again.
    pub fn forbids_retry(&self) -> bool {
        self.advice_code.as_deref() == Some("do_not_try_again")
    }

    /// Whether the customer's bank requires authentication (3-D Secure). Stripe reports this in the code or, for a card
    /// declined for that reason, in the decline code.
    pub fn requires_authentication(&self) -> bool {
        self.code == Self::AUTHENTICATION_REQUIRED
            || self.decline_code.as_deref() == Some(Self::AUTHENTICATION_REQUIRED)
    }

    /// Whether both describe the same refusal: by charge if both name one, otherwise by code and decline code.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        match (&self.provider_charge_id, &other.provider_charge_id) {
            (Some(left), Some(right)) => left == right,
            _ => self.code == other.code && self.decline_code == other.decline_code,
        }
    }
}
