//! Converts payment methods.

use super::{Fields, timestamp};
use crate::domain::PaymentMethodId;
use crate::domain::payment_methods::{Mandate, Mandates, MethodDetails, MethodKind, PaymentMethod};
use crate::grpc::proto::{self, PaymentMethodKind, PaymentMethodState, SepaMandateState, payment_method::Details};

impl Fields {
    /// The allowed kinds, each once, in the caller's order. May be empty.
    pub(super) fn kinds(&mut self, field: &str, kinds: &[i32]) -> Vec<MethodKind> {
        let mut parsed = Vec::new();
        for (index, value) in kinds.iter().enumerate().take(16) {
            let Some(kind) = MethodKind::ALL.iter().copied().find(|known| i32::from(kind(*known)) == *value) else {
                let names: Vec<_> = MethodKind::ALL.iter().map(|known| kind(*known).as_str_name()).collect();
                self.add_violation(&format!("{field}[{index}]"), format!("must be {}", names.join(" or ")));
                continue;
            };
            if parsed.contains(&kind) {
                self.add_violation(&format!("{field}[{index}]"), "is a duplicate; name each kind once");
            }
            parsed.push(kind);
        }
        parsed
    }
}

/// The proto value of a kind.
pub(super) fn kind(kind: MethodKind) -> PaymentMethodKind {
    match kind {
        MethodKind::Card => PaymentMethodKind::Card,
        MethodKind::SepaDebit => PaymentMethodKind::SepaDebit,
    }
}

/// Converts a payment method. `default` is its customer's default.
pub(in crate::grpc) fn payment_method(method: PaymentMethod, default: Option<PaymentMethodId>) -> proto::PaymentMethod {
    let known = method.known_kind();
    let mandate = method.mandates.clone();
    let state = if method.detach_time.is_some() { PaymentMethodState::Detached } else { PaymentMethodState::Attached };
    proto::PaymentMethod {
        id: method.id.to_string(),
        customer_id: method.customer_id.to_string(),
        provider_payment_method_id: method.provider_payment_method_id,
        kind: known.map_or(PaymentMethodKind::Unspecified, kind).into(),
        details: known.map(|kind| details(kind, method.details, &mandate)),
        is_default: default == Some(method.id),
        state: state.into(),
        attach_time: method.attach_time.map(timestamp),
        detach_time: method.detach_time.map(timestamp),
    }
}

fn details(kind: MethodKind, details: MethodDetails, mandates: &Mandates) -> Details {
    let (mandate, state) = match mandates.state() {
        Mandate::Active(id) => (id, SepaMandateState::Active),
        Mandate::Inactive => ("", SepaMandateState::Inactive),
        Mandate::Unknown => ("", SepaMandateState::Unknown),
    };
    match kind {
        MethodKind::Card => Details::Card(proto::CardDetails {
            brand: details.brand.unwrap_or_default(),
            last4: details.last4.unwrap_or_default(),
            exp_month: details.exp_month.unwrap_or_default(),
            exp_year: details.exp_year.unwrap_or_default(),
        }),
        MethodKind::SepaDebit => Details::SepaDebit(proto::SepaDebitDetails {
            last4: details.last4.unwrap_or_default(),
            country: details.country.unwrap_or_default(),
            bank_code: details.bank_code.unwrap_or_default(),
            provider_mandate_id: mandate.to_owned(),
            mandate_state: state.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn method(kind: &str) -> PaymentMethod {
        PaymentMethod {
            id: Uuid::from_u128(1).into(),
            organization_id: Uuid::nil().into(),
            customer_id: Uuid::nil().into(),
            integration_id: Uuid::nil().into(),
            provider_payment_method_id: "pm_1".into(),
            kind: kind.into(),
            details: MethodDetails { last4: Some("4242".into()), ..Default::default() },
            mandates: Mandates::default(),
            attach_time: None,
            choose_time: None,
            unset_time: None,
            is_unset_read: false,
            detach_time: None,
            is_detach_read: false,
            create_time: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn details_depend_on_the_kind() {
        let converted = |kind| payment_method(method(kind), None);
        assert!(matches!(converted("card").details, Some(Details::Card(card)) if card.last4 == "4242"));
        let mandate = |facts: &[bool]| {
            let mut sepa = method("sepa_debit");
            for is_active in facts {
                sepa.mandates.record("mandate_1", *is_active);
            }
            match payment_method(sepa, None).details {
                Some(Details::SepaDebit(it)) => (it.provider_mandate_id.clone(), it.mandate_state()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(mandate(&[]), (String::new(), SepaMandateState::Unknown));
        assert_eq!(mandate(&[true]), ("mandate_1".to_owned(), SepaMandateState::Active));
        assert_eq!(mandate(&[true, false]), (String::new(), SepaMandateState::Inactive));
        let other = converted("link");
        assert_eq!((other.kind, other.details), (PaymentMethodKind::Unspecified.into(), None));
    }

    #[test]
    fn the_customers_default_is_marked() {
        assert!(payment_method(method("card"), Some(Uuid::from_u128(1).into())).is_default);
        assert!(!payment_method(method("card"), Some(Uuid::from_u128(2).into())).is_default);
        assert!(!payment_method(method("card"), None).is_default);
    }
}
