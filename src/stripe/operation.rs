//! What we do at Stripe.

/// An operation at Stripe, for logs, the `action` of `payment_provider.error`, and the list of operations that a key
/// lacks the permission for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[expect(missing_docs, reason = "their names in events say what they are")]
pub enum Operation {
    #[strum(serialize = "customer.create")]
    CustomerCreate,
    #[strum(serialize = "customer.link")]
    CustomerLink,
    #[strum(serialize = "customer.read")]
    CustomerRead,
    #[strum(serialize = "customer.list")]
    CustomerList,
    #[strum(serialize = "customer.update")]
    CustomerUpdate,
    #[strum(serialize = "customer.set_default")]
    CustomerSetDefault,
    #[strum(serialize = "payment_method.read")]
    PaymentMethodRead,
    #[strum(serialize = "payment_method.list")]
    PaymentMethodList,
    #[strum(serialize = "payment_method.detach")]
    PaymentMethodDetach,
    #[strum(serialize = "mandate.read")]
    MandateRead,
    #[strum(serialize = "setup_intent.read")]
    SetupIntentRead,
    #[strum(serialize = "checkout_session.create")]
    CheckoutSessionCreate,
    #[strum(serialize = "checkout_session.read")]
    CheckoutSessionRead,
    #[strum(serialize = "checkout_session.list")]
    CheckoutSessionList,
    #[strum(serialize = "checkout_session.expire")]
    CheckoutSessionExpire,
    #[strum(serialize = "payment_intent.create")]
    PaymentIntentCreate,
    #[strum(serialize = "payment_intent.read")]
    PaymentIntentRead,
    #[strum(serialize = "payment_intent.list")]
    PaymentIntentList,
    #[strum(serialize = "payment_intent.confirm")]
    PaymentIntentConfirm,
    #[strum(serialize = "payment_intent.cancel")]
    PaymentIntentCancel,
    #[strum(serialize = "refund.create")]
    RefundCreate,
    #[strum(serialize = "refund.read")]
    RefundRead,
    #[strum(serialize = "refund.list")]
    RefundList,
    #[strum(serialize = "dispute.read")]
    DisputeRead,
    #[strum(serialize = "dispute.list")]
    DisputeList,
    #[strum(serialize = "event.list")]
    EventList,
    #[strum(serialize = "webhook_endpoint.list")]
    WebhookEndpointList,
    #[strum(serialize = "webhook_endpoint.update")]
    WebhookEndpointUpdate,
    #[strum(serialize = "webhook_endpoint.delete")]
    WebhookEndpointDelete,
}

impl Operation {
    /// The name in events and in the database.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether invoices can be collected without it.
    pub fn is_optional(self) -> bool {
        matches!(
            self,
            Self::SetupIntentRead
                | Self::RefundCreate
                | Self::RefundRead
                | Self::RefundList
                | Self::DisputeRead
                | Self::DisputeList
                | Self::EventList
        )
    }
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;

    /// Callers and the database have these names: an operation may be added, but never renamed.
    #[test]
    fn the_names_are_what_events_and_the_database_have() {
        let names: Vec<_> = Operation::VARIANTS.iter().map(|operation| operation.as_str()).collect();
        let expected = "customer.create customer.link customer.read customer.list customer.update \
                        customer.set_default payment_method.read payment_method.list payment_method.detach \
                        mandate.read setup_intent.read checkout_session.create checkout_session.read \
                        checkout_session.list checkout_session.expire payment_intent.create payment_intent.read \
                        payment_intent.list payment_intent.confirm payment_intent.cancel refund.create refund.read \
                        refund.list dispute.read dispute.list event.list webhook_endpoint.list webhook_endpoint.update \
                        webhook_endpoint.delete";
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn collecting_needs_all_operations_but_those_for_refunds_disputes_setup_intents_and_the_events_list() {
        let optional = |operation: &Operation| {
            let name = operation.as_str();
            ["refund.", "dispute.", "setup_intent.", "event."].iter().any(|object| name.starts_with(object))
        };
        for operation in Operation::VARIANTS {
            assert_eq!(operation.is_optional(), optional(operation), "{}", operation.as_str());
        }
    }
}
