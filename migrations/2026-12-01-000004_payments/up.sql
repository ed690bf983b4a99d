-- The collection of one invoice. All amounts are in minor units: cents, or whole yen.
CREATE TABLE payments (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    integration_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    -- As in customers, where it cannot change: a payment outlives its customer, and shows it.
    external_customer_id text NOT NULL,
    invoice_id text NOT NULL,
    invoice_number text NOT NULL,
    amount bigint NOT NULL,
    currency char(3) NOT NULL,
    state text NOT NULL,
    pending_reason text,
    -- Why the payment failed: a code, a text, Stripe's decline and advice codes.
    failure jsonb,
    -- The payment failed for lack of a payment method, and the one retry that Paybridge makes on its own is still due.
    awaits_method boolean NOT NULL,
    -- The one PaymentIntent that all attempts confirm (P1).
    provider_payment_intent_id text,
    -- Incremented with every new PaymentIntent; part of the idempotency key that creates it.
    intent_number integer NOT NULL,
    -- The newest attempt; 0 before the first.
    attempt_number integer NOT NULL,
    -- The payment method that RetryPayment named.
    requested_method_id uuid,
    -- The next confirmation is made with the customer present (3-D Secure).
    on_session boolean NOT NULL,
    -- Where the customer authenticates.
    next_action_url text,
    -- When the customer was asked to authenticate.
    action_time timestamptz,
    -- The charge that paid the invoice: Stripe's ch_….
    provider_charge_id text,
    -- As Stripe reports it.
    amount_received bigint NOT NULL,
    -- Received for the present amount by charges made in the Stripe Dashboard that did not pay it in full. A change of
    -- the amount takes it into account.
    part_received bigint NOT NULL,
    -- Over all charges.
    amount_refunded bigint NOT NULL,
    -- When CancelPayment was accepted.
    cancel_request_time timestamptz,
    -- Runs once nothing at Stripe can take money for the payment any more (P1): {"kind": "cancel"}, …
    pending_operation jsonb,
    -- An amount change that was refused because the payer was about to pay the present amount. What is received is
    -- compared with it.
    refused_amount bigint,
    -- A payment of the whole amount that was made elsewhere, as recorded by RecordManualPayment.
    manual jsonb,
    -- Since when the outcome of a call to Stripe is unknown (P2).
    unknown_since timestamptz,
    -- Incremented by every change; the etag.
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT payments_pkey PRIMARY KEY (organization_id, id),
    -- One payment per invoice: a guard that never expires (P1).
    CONSTRAINT payments_invoice_key UNIQUE (organization_id, invoice_id),
    CONSTRAINT payments_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT payments_customer_fkey
        FOREIGN KEY (organization_id, customer_id) REFERENCES customers (organization_id, id),
    CONSTRAINT payments_integration_fkey
        FOREIGN KEY (organization_id, integration_id) REFERENCES integrations (organization_id, id),
    CONSTRAINT payments_amount_check CHECK (amount >= 0),
    CONSTRAINT payments_currency_check CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT payments_state_check
        CHECK (state IN ('pending', 'processing', 'requires_action', 'succeeded', 'failed', 'canceled'))
);
CREATE UNIQUE INDEX payments_intent_key ON payments (organization_id, provider_payment_intent_id)
WHERE provider_payment_intent_id IS NOT NULL;
CREATE INDEX payments_customer_idx ON payments (organization_id, customer_id, id);
-- Payments of one state, in list order.
CREATE INDEX payments_state_idx ON payments (organization_id, state, id);
CREATE INDEX payments_unsettled_idx ON payments (organization_id, integration_id)
WHERE state IN ('pending', 'processing', 'requires_action');
CREATE INDEX payments_pending_operation_idx ON payments (organization_id, integration_id)
WHERE pending_operation IS NOT NULL;

-- An attempt confirms the payment's PaymentIntent, or is a payment link: a payment-mode Checkout session.
CREATE TABLE payment_attempts (
    organization_id uuid NOT NULL,
    payment_id uuid NOT NULL,
    number integer NOT NULL,
    kind text NOT NULL,
    -- Minor units.
    amount bigint NOT NULL,
    currency char(3) NOT NULL,
    -- NULL for a link: the payer chooses.
    payment_method_id uuid,
    -- For a link, Stripe creates the PaymentIntent when the payer pays.
    provider_payment_intent_id text,
    -- Of a link. Until this is set the link has not left Paybridge, and nobody can pay there.
    provider_session_id text,
    -- Of a link.
    url text,
    -- When the link expires, as Stripe reports it.
    expire_time timestamptz,
    -- The attempt's own key. Stripe's events name it, which matches them to the attempt.
    idempotency_key text NOT NULL,
    -- Stored before it is first sent, and sent again byte for byte (P2).
    body text NOT NULL,
    -- The intent's latest_charge and last_payment_error just before the confirmation. If neither has changed since, a
    -- read of the intent proves nothing.
    prior_charge text,
    prior_error jsonb,
    state text NOT NULL,
    failure jsonb,
    provider_charge_id text,
    -- Since when Stripe is known to replay a stored 500 for this key, or to have received it with another body: it will
    -- never bring another answer (P2).
    dead_key_time timestamptz,
    -- Since when Stripe is known to have received this key with another body.
    taken_key_time timestamptz,
    create_time timestamptz NOT NULL,
    finish_time timestamptz,
    CONSTRAINT payment_attempts_pkey PRIMARY KEY (organization_id, payment_id, number),
    CONSTRAINT payment_attempts_idempotency_key_key UNIQUE (organization_id, idempotency_key),
    CONSTRAINT payment_attempts_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT payment_attempts_payment_fkey
        FOREIGN KEY (organization_id, payment_id) REFERENCES payments (organization_id, id),
    CONSTRAINT payment_attempts_number_check CHECK (number > 0),
    CONSTRAINT payment_attempts_kind_check CHECK (kind IN ('confirm', 'link')),
    CONSTRAINT payment_attempts_confirm_check
        CHECK (kind = 'link' OR (payment_method_id IS NOT NULL AND provider_payment_intent_id IS NOT NULL)),
    CONSTRAINT payment_attempts_state_check
        CHECK (state IN ('open', 'succeeded', 'failed', 'canceled', 'superseded'))
);
-- At most one open payment path per invoice: both kinds of attempts share this slot (P1).
CREATE UNIQUE INDEX payment_attempts_slot_key ON payment_attempts (organization_id, payment_id) WHERE state = 'open';
-- A refund or a dispute names its intent, which may be an earlier one of its payment.
CREATE INDEX payment_attempts_intent_idx ON payment_attempts (organization_id, provider_payment_intent_id);
CREATE INDEX payment_attempts_session_idx ON payment_attempts (organization_id, provider_session_id)
WHERE provider_session_id IS NOT NULL;

-- Charges that took money for a payment and can be refunded: the one that settled it, and overpayments (P12).
CREATE TABLE charges (
    organization_id uuid NOT NULL,
    provider_charge_id text NOT NULL,
    payment_id uuid NOT NULL,
    -- The integration that took the money.
    integration_id uuid NOT NULL,
    -- Minor units, as Stripe reports them.
    amount bigint NOT NULL,
    -- Stripe's, which may differ from the payment's.
    currency char(3) NOT NULL,
    -- The charge settled the payment. Otherwise it is an overpayment.
    settles boolean NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT charges_pkey PRIMARY KEY (organization_id, provider_charge_id),
    CONSTRAINT charges_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT charges_payment_fkey
        FOREIGN KEY (organization_id, payment_id) REFERENCES payments (organization_id, id),
    CONSTRAINT charges_integration_fkey
        FOREIGN KEY (organization_id, integration_id) REFERENCES integrations (organization_id, id),
    CONSTRAINT charges_currency_check CHECK (currency ~ '^[A-Z]{3}$')
);
CREATE INDEX charges_payment_idx ON charges (organization_id, payment_id);

-- Refunds, disputes and overpayments are facts of their own; they never change a settled payment's state (P7).

-- A refund requested here has a row before Stripe knows of it. One made in the Stripe Dashboard gets its row when
-- Stripe reports it.
CREATE TABLE refunds (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    payment_id uuid NOT NULL,
    -- The integration that took the money, and gives it back.
    integration_id uuid NOT NULL,
    -- NULL until Stripe has created it.
    provider_refund_id text,
    provider_charge_id text,
    -- Minor units. NULL: all that is left of the charge, until Stripe reports how much that was.
    amount bigint,
    currency char(3) NOT NULL,
    -- Stripe's own status.
    status text NOT NULL,
    failure_reason text,
    -- Since when the outcome of the call to Stripe is unknown (P2).
    unknown_since timestamptz,
    -- The caller's, which names the request to Stripe. NULL for a refund that was not requested here.
    request_id text,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT refunds_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT refunds_provider_key UNIQUE (organization_id, provider_refund_id),
    CONSTRAINT refunds_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT refunds_payment_fkey
        FOREIGN KEY (organization_id, payment_id) REFERENCES payments (organization_id, id),
    CONSTRAINT refunds_integration_fkey
        FOREIGN KEY (organization_id, integration_id) REFERENCES integrations (organization_id, id)
);
CREATE INDEX refunds_payment_idx ON refunds (organization_id, payment_id, id);
-- Few refunds are unsettled at any time.
CREATE INDEX refunds_unsettled_idx ON refunds (organization_id, integration_id)
WHERE status IN ('pending', 'requires_action');

CREATE TABLE disputes (
    organization_id uuid NOT NULL,
    provider_dispute_id text NOT NULL,
    payment_id uuid NOT NULL,
    provider_charge_id text,
    -- Minor units.
    amount bigint NOT NULL,
    currency char(3) NOT NULL,
    -- Stripe's own status.
    status text NOT NULL,
    reason text,
    update_time timestamptz NOT NULL,
    CONSTRAINT disputes_pkey PRIMARY KEY (organization_id, provider_dispute_id),
    CONSTRAINT disputes_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT disputes_payment_fkey
        FOREIGN KEY (organization_id, payment_id) REFERENCES payments (organization_id, id)
);
CREATE INDEX disputes_payment_idx ON disputes (organization_id, payment_id);

-- Money received for an invoice by another PaymentIntent than the payment's own (P12), once per intent.
CREATE TABLE overpayments (
    organization_id uuid NOT NULL,
    provider_payment_intent_id text NOT NULL,
    payment_id uuid NOT NULL,
    -- Minor units, as Stripe reports them.
    amount_received bigint NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT overpayments_pkey PRIMARY KEY (organization_id, provider_payment_intent_id),
    CONSTRAINT overpayments_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT overpayments_payment_fkey
        FOREIGN KEY (organization_id, payment_id) REFERENCES payments (organization_id, id)
);
