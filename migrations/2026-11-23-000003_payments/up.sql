CREATE TABLE payments (
    organization_id uuid NOT NULL CONSTRAINT payments_organization_fkey REFERENCES organizations,
    id uuid NOT NULL,
    integration_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    invoice_id text NOT NULL,
    invoice_number text NOT NULL,
    -- Minor units: cents, or whole yen.
    amount bigint NOT NULL CONSTRAINT payments_amount_check CHECK (amount >= 0),
    currency char(3) NOT NULL CONSTRAINT payments_currency_check CHECK (currency ~ '^[A-Z]{3}$'),
    state text NOT NULL
        CONSTRAINT payments_state_check
        CHECK (state IN ('pending', 'processing', 'requires_action', 'succeeded', 'failed', 'canceled')),
    pending_reason text,
    -- Why it was refused: a code, a text, Stripe's decline and advice codes.
    failure jsonb,
    -- The one intent that all tries confirm (P1).
    provider_payment_intent_id text,
    -- How often an intent was made anew; part of the creation's idempotency key.
    intent_number integer NOT NULL,
    -- The newest attempt; 0 before the first.
    attempt_number integer NOT NULL,
    requested_method_id uuid,
    next_action_url text,
    -- Minor units, as Stripe reports them.
    amount_received bigint NOT NULL,
    -- Minor units, over all charges.
    amount_refunded bigint NOT NULL,
    cancel_request_time timestamptz,
    unknown_since timestamptz,
    -- Rises with every change; it is the etag.
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT payments_pkey PRIMARY KEY (organization_id, id),
    -- One invoice, one payment: the guard that never expires (P1).
    CONSTRAINT payments_invoice_key UNIQUE (organization_id, invoice_id),
    CONSTRAINT payments_customer_fkey FOREIGN KEY (organization_id, customer_id)
        REFERENCES customers (organization_id, id),
    CONSTRAINT payments_integration_fkey FOREIGN KEY (organization_id, integration_id)
        REFERENCES integrations (organization_id, id)
);
CREATE UNIQUE INDEX payments_intent_key ON payments (organization_id, provider_payment_intent_id)
WHERE provider_payment_intent_id IS NOT NULL;
CREATE INDEX payments_customer_idx ON payments (organization_id, customer_id, id);
CREATE INDEX payments_unsettled_idx ON payments (organization_id, integration_id)
WHERE state IN ('pending', 'processing', 'requires_action');

CREATE TABLE payment_attempts (
    organization_id uuid NOT NULL CONSTRAINT payment_attempts_organization_fkey REFERENCES organizations,
    payment_id uuid NOT NULL,
    number integer NOT NULL CONSTRAINT payment_attempts_number_check CHECK (number > 0),
    -- Minor units.
    amount bigint NOT NULL,
    currency char(3) NOT NULL,
    payment_method_id uuid NOT NULL,
    provider_payment_intent_id text NOT NULL,
    -- The attempt's own: Stripe's events name it, and lead back here.
    idempotency_key text NOT NULL,
    -- Frozen: sent again byte for byte (P2).
    body text NOT NULL,
    -- The intent's latest_charge and last_payment_error just before the confirm: if neither changes, nothing is proved.
    prior_charge text,
    prior_error jsonb,
    state text NOT NULL
        CONSTRAINT payment_attempts_state_check CHECK (state IN ('open', 'succeeded', 'failed', 'canceled', 'superseded')),
    failure jsonb,
    provider_charge_id text,
    -- When Stripe first replayed a stored 500: this key will never say anything else (P2).
    dead_key_time timestamptz,
    create_time timestamptz NOT NULL,
    finish_time timestamptz,
    CONSTRAINT payment_attempts_pkey PRIMARY KEY (organization_id, payment_id, number),
    CONSTRAINT payment_attempts_key_key UNIQUE (organization_id, idempotency_key),
    CONSTRAINT payment_attempts_payment_fkey FOREIGN KEY (organization_id, payment_id)
        REFERENCES payments (organization_id, id)
);
-- The slot: at most one attempt of a payment may be able to take money (P1).
CREATE UNIQUE INDEX payment_attempts_slot_key ON payment_attempts (organization_id, payment_id) WHERE state = 'open';

-- Refunds and disputes are facts of their own beside the payment's state (P7), upserted by Stripe's id.
CREATE TABLE refunds (
    organization_id uuid NOT NULL CONSTRAINT refunds_organization_fkey REFERENCES organizations,
    provider_refund_id text NOT NULL,
    payment_id uuid NOT NULL,
    provider_charge_id text,
    amount bigint NOT NULL,
    currency char(3) NOT NULL,
    status text NOT NULL,
    failure_reason text,
    update_time timestamptz NOT NULL,
    CONSTRAINT refunds_pkey PRIMARY KEY (organization_id, provider_refund_id),
    CONSTRAINT refunds_payment_fkey FOREIGN KEY (organization_id, payment_id)
        REFERENCES payments (organization_id, id)
);
CREATE INDEX refunds_payment_idx ON refunds (organization_id, payment_id);

CREATE TABLE disputes (
    organization_id uuid NOT NULL CONSTRAINT disputes_organization_fkey REFERENCES organizations,
    provider_dispute_id text NOT NULL,
    payment_id uuid NOT NULL,
    provider_charge_id text,
    amount bigint NOT NULL,
    currency char(3) NOT NULL,
    status text NOT NULL,
    reason text,
    update_time timestamptz NOT NULL,
    CONSTRAINT disputes_pkey PRIMARY KEY (organization_id, provider_dispute_id),
    CONSTRAINT disputes_payment_fkey FOREIGN KEY (organization_id, payment_id)
        REFERENCES payments (organization_id, id)
);
CREATE INDEX disputes_payment_idx ON disputes (organization_id, payment_id);

-- Money that came in for an invoice beside the intent that collects it (P12), each once by Stripe's id of the intent.
CREATE TABLE overpayments (
    organization_id uuid NOT NULL CONSTRAINT overpayments_organization_fkey REFERENCES organizations,
    provider_payment_intent_id text NOT NULL,
    payment_id uuid NOT NULL,
    -- Minor units, as Stripe reports them.
    amount_received bigint NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT overpayments_pkey PRIMARY KEY (organization_id, provider_payment_intent_id),
    CONSTRAINT overpayments_payment_fkey FOREIGN KEY (organization_id, payment_id)
        REFERENCES payments (organization_id, id)
);
