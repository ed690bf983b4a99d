CREATE TABLE customers (
    organization_id uuid NOT NULL CONSTRAINT customers_organization_fkey REFERENCES organizations,
    id uuid NOT NULL,
    external_id text NOT NULL,
    name text NOT NULL,
    email text NOT NULL,
    phone text NOT NULL,
    address jsonb,
    integration_id uuid,
    link_state text NOT NULL
        CONSTRAINT customers_link_state_check CHECK (link_state IN ('none', 'pending', 'linked', 'failed')),
    link_error text,
    -- While the link is pending: the id that is being checked, or nothing while the customer is being created.
    provider_customer_id text,
    provider_payment_methods text[] NOT NULL
        CONSTRAINT customers_provider_payment_methods_check CHECK (cardinality(provider_payment_methods) > 0),
    sync_with_provider boolean NOT NULL,
    default_payment_method_id uuid,
    -- The fields that were changed here and not pushed to Stripe yet.
    unpushed_fields text[] NOT NULL,
    -- Rises with every change; it is the etag.
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    delete_time timestamptz,
    CONSTRAINT customers_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT customers_integration_fkey FOREIGN KEY (organization_id, integration_id)
        REFERENCES integrations (organization_id, id)
);

CREATE UNIQUE INDEX customers_external_id_key ON customers (organization_id, external_id) WHERE delete_time IS NULL;
-- A Stripe customer belongs to one customer of ours.
CREATE UNIQUE INDEX customers_provider_customer_key
ON customers (organization_id, integration_id, provider_customer_id)
WHERE delete_time IS NULL AND provider_customer_id IS NOT NULL;

CREATE TABLE payment_methods (
    organization_id uuid NOT NULL CONSTRAINT payment_methods_organization_fkey REFERENCES organizations,
    id uuid NOT NULL,
    customer_id uuid NOT NULL,
    integration_id uuid NOT NULL,
    provider_payment_method_id text NOT NULL,
    kind text NOT NULL,
    details jsonb NOT NULL,
    provider_mandate_id text,
    -- A mandate of this method that ended: it permits no debits any more, whatever is told of it later.
    ended_mandate_id text,
    -- The earliest time at which Stripe told of its attachment.
    attach_time timestamptz,
    -- The latest time at which somebody chose it as the default.
    choose_time timestamptz,
    -- Detaching is for ever.
    detach_time timestamptz,
    create_time timestamptz NOT NULL,
    CONSTRAINT payment_methods_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT payment_methods_provider_key UNIQUE (organization_id, integration_id, provider_payment_method_id),
    CONSTRAINT payment_methods_customer_fkey FOREIGN KEY (organization_id, customer_id)
        REFERENCES customers (organization_id, id)
);
CREATE INDEX payment_methods_customer_idx ON payment_methods (organization_id, customer_id, id);

CREATE TABLE checkout_sessions (
    organization_id uuid NOT NULL CONSTRAINT checkout_sessions_organization_fkey REFERENCES organizations,
    id uuid NOT NULL,
    customer_id uuid NOT NULL,
    integration_id uuid NOT NULL,
    state text NOT NULL
        CONSTRAINT checkout_sessions_state_check
        CHECK (state IN ('creating', 'open', 'complete', 'expired', 'failed')),
    success_url text NOT NULL,
    provider_session_id text,
    url text,
    -- As Stripe says: 24 h after it was made.
    expire_time timestamptz,
    -- The link is told by an event; else the caller has it from the call's answer.
    tell boolean NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT checkout_sessions_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT checkout_sessions_customer_fkey FOREIGN KEY (organization_id, customer_id)
        REFERENCES customers (organization_id, id)
);
CREATE UNIQUE INDEX checkout_sessions_provider_key
ON checkout_sessions (organization_id, integration_id, provider_session_id) WHERE provider_session_id IS NOT NULL;
CREATE INDEX checkout_sessions_open_idx ON checkout_sessions (organization_id, integration_id)
WHERE state IN ('creating', 'open');
