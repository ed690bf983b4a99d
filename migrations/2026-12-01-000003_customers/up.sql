CREATE TABLE customers (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    -- The billing system's id. Unique among the organization's customers that are not deleted.
    external_id text NOT NULL,
    name text NOT NULL,
    email text NOT NULL,
    phone text NOT NULL,
    address jsonb,
    integration_id uuid,
    link_state text NOT NULL,
    link_error text,
    -- While the link is pending: the id that is being checked, or NULL while the customer is being created at Stripe.
    provider_customer_id text,
    provider_payment_methods text[] NOT NULL,
    sync_with_provider boolean NOT NULL,
    default_payment_method_id uuid,
    -- Stripe's own default as last reported or written: the id of a PaymentMethod, or of an old card or source. A read
    -- that shows another one means that somebody chose it and its event is missing.
    provider_default_id text,
    -- When it became the default, in whole seconds where Stripe has reported it. NULL: nothing is known.
    provider_default_time timestamptz,
    -- Fields that were changed here and not pushed to Stripe yet.
    unpushed_fields text[] NOT NULL,
    -- Incremented by every change; the etag.
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    -- Deleted customers keep their row for their payments.
    delete_time timestamptz,
    CONSTRAINT customers_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT customers_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT customers_integration_fkey
        FOREIGN KEY (organization_id, integration_id) REFERENCES integrations (organization_id, id),
    CONSTRAINT customers_link_state_check CHECK (link_state IN ('none', 'pending', 'linked', 'failed')),
    CONSTRAINT customers_provider_payment_methods_check CHECK (cardinality(provider_payment_methods) > 0)
);
CREATE UNIQUE INDEX customers_external_id_key ON customers (organization_id, external_id) WHERE delete_time IS NULL;
-- A Stripe customer belongs to one customer of ours.
CREATE UNIQUE INDEX customers_provider_customer_key
ON customers (organization_id, integration_id, provider_customer_id)
WHERE delete_time IS NULL AND provider_customer_id IS NOT NULL;
-- Links that are being created or checked: few at any time.
CREATE INDEX customers_pending_idx ON customers (organization_id, integration_id, id) WHERE link_state = 'pending';

-- Dated facts about Stripe's PaymentMethods. The customer's default follows from them.
CREATE TABLE payment_methods (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    customer_id uuid NOT NULL,
    integration_id uuid NOT NULL,
    provider_payment_method_id text NOT NULL,
    kind text NOT NULL,
    details jsonb NOT NULL,
    -- Every mandate of the method that is known, by Stripe's id.
    mandate_ids text[] NOT NULL,
    -- Those of them that have ended. An ended mandate stays ended, whatever is reported later.
    ended_mandate_ids text[] NOT NULL,
    -- The earliest time at which Stripe reported the method as attached.
    attach_time timestamptz,
    -- The latest time at which somebody chose the method as the customer's default.
    choose_time timestamptz,
    -- When somebody last unset the method as the default at Stripe. It counts as a choice of no default, unless the
    -- method was detached by then: Stripe itself unsets a detached default.
    unset_time timestamptz,
    -- `unset_time` comes from a read that showed no default. Stripe's event, which has the exact time, corrects both.
    is_unset_read boolean NOT NULL,
    -- Final: a method cannot be attached again.
    detach_time timestamptz,
    -- `detach_time` comes from a read that showed the method detached. Stripe's event corrects both.
    is_detach_read boolean NOT NULL,
    -- A card's month of expiry: year * 12 + month, month 1 to 12. A column of its own, because row level security keeps
    -- an expression over `details` from being an index condition: its functions are not leakproof.
    expiry_month integer
        GENERATED ALWAYS AS ((details ->> 'exp_year')::integer * 12 + (details ->> 'exp_month')::integer) STORED,
    -- The `expiry_month` that payment_method.expiring has reported.
    reported_expiry integer,
    create_time timestamptz NOT NULL,
    CONSTRAINT payment_methods_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT payment_methods_provider_key UNIQUE (organization_id, integration_id, provider_payment_method_id),
    CONSTRAINT payment_methods_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT payment_methods_customer_fkey
        FOREIGN KEY (organization_id, customer_id) REFERENCES customers (organization_id, id)
);
CREATE INDEX payment_methods_customer_idx ON payment_methods (organization_id, customer_id, id);
-- Cards by their month of expiry, until it is reported.
CREATE INDEX payment_methods_expiry_idx ON payment_methods (organization_id, integration_id, expiry_month)
WHERE kind = 'card' AND detach_time IS NULL AND reported_expiry IS DISTINCT FROM expiry_month;

-- Setup-mode sessions, which store a payment method. Payment-mode sessions are in payment_attempts.
CREATE TABLE checkout_sessions (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    customer_id uuid NOT NULL,
    integration_id uuid NOT NULL,
    state text NOT NULL,
    success_url text NOT NULL,
    provider_session_id text,
    url text,
    -- Stripe's answer: 24 h after the session was created.
    expire_time timestamptz,
    -- The URL is reported by an event. Otherwise the caller gets it in the response.
    reports_url boolean NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT checkout_sessions_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT checkout_sessions_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT checkout_sessions_customer_fkey
        FOREIGN KEY (organization_id, customer_id) REFERENCES customers (organization_id, id),
    CONSTRAINT checkout_sessions_state_check CHECK (state IN ('creating', 'open', 'complete', 'expired', 'failed'))
);
CREATE UNIQUE INDEX checkout_sessions_provider_key
ON checkout_sessions (organization_id, integration_id, provider_session_id) WHERE provider_session_id IS NOT NULL;
CREATE INDEX checkout_sessions_open_idx ON checkout_sessions (organization_id, integration_id)
WHERE state IN ('creating', 'open');
