CREATE TABLE integrations (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    -- Unique among the organization's integrations that are not disconnected.
    code text NOT NULL,
    name text NOT NULL,
    state text NOT NULL,
    -- Set while the state is 'paused'.
    pause_reason text,
    livemode boolean NOT NULL,
    -- NULL until Stripe has reported it.
    provider_account_id text,
    -- The API key's last four characters, to tell keys apart.
    key_hint text NOT NULL,
    -- A sealed value holds the key's id, a nonce and the ciphertext, and is bound to its row and column (P9).
    -- NULL once the integration is disconnected.
    sealed_secret_key bytea,
    provider_endpoint_id text,
    -- Stripe sends the endpoint's signing secret only in the response that creates the endpoint.
    sealed_webhook_secret bytea,
    -- Set while the endpoint is being replaced: the endpoint that is still to be deleted. Its secret stays valid until
    -- then, for webhooks in flight.
    provider_old_endpoint_id text,
    sealed_old_webhook_secret bytea,
    -- A problem with the endpoint that could not be repaired. It is reported once.
    endpoint_fault text,
    -- Calls that the present API key was refused for lack of a permission, such as 'refund.create'. Each is reported
    -- once; a new key empties the list.
    forbidden_actions text[] NOT NULL,
    -- Stripe cannot reach Paybridge, so its events list is polled instead of receiving webhooks.
    polls_events boolean NOT NULL,
    -- The `created` of the newest event seen by a complete read of the events list. The next read overlaps it.
    poll_time timestamptz,
    -- When the events list was last read completely. `poll_time` can be much older.
    list_read_time timestamptz,
    -- The list is polled at the short interval until then, to catch up after a long gap.
    list_fast_until timestamptz,
    -- The events list is read page by page from its newest event backwards. The next three columns hold the position of
    -- a read that was interrupted (P6). NULL: no read is in progress.
    -- The last event of the last page that was read.
    list_walk_after text,
    -- The time at which the read ends.
    list_walk_since timestamptz,
    -- The `created` of the newest event seen: it becomes `poll_time` when the read is complete.
    list_walk_newest timestamptz,
    -- Stale objects have been reconciled up to this time.
    sweep_time timestamptz,
    -- Where the payer goes after Checkout, unless the call names another page.
    success_redirect_url text,
    supports_3ds boolean NOT NULL,
    relay_provider_events boolean NOT NULL,
    -- A disconnect was requested that does not wait for payments, sessions and refunds in flight.
    force_disconnect boolean NOT NULL,
    -- Incremented by every change; the etag.
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT integrations_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT integrations_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT integrations_state_check
        CHECK (state IN ('connecting', 'active', 'paused', 'disconnecting', 'disconnected'))
);
CREATE UNIQUE INDEX integrations_code_key ON integrations (organization_id, code) WHERE state <> 'disconnected';
-- A Stripe account is connected once: two webhook endpoints would report everything twice.
CREATE UNIQUE INDEX integrations_account_key ON integrations (organization_id, provider_account_id, livemode)
WHERE state <> 'disconnected';

-- One row per integration: when Stripe last confirmed that this database is the one in use, and how far catching up has
-- come. An integration catches up by reading from Stripe what a database that was restored, failed over or copied has
-- forgotten.
CREATE TABLE stripe_contacts (
    organization_id uuid NOT NULL,
    integration_id uuid NOT NULL,
    -- When Stripe last confirmed it, in the time of Paybridge's clock.
    contact_time timestamptz NOT NULL,
    -- A counter that is raised now and then, here and in the metadata of the webhook endpoint at Stripe. If Stripe's is
    -- ahead, another copy of this database has raised it.
    number bigint NOT NULL,
    -- NULL: the integration is not catching up, and the columns below hold nothing.
    catch_up_reason text,
    -- When it was reported.
    catch_up_start timestamptz,
    -- What is being read from Stripe.
    stage text,
    -- The last object of that stage that was read: reading continues after it.
    after text,
    -- In all stages so far.
    objects_read bigint NOT NULL,
    -- The counter at Stripe, the incarnation that has written it, and when it was first seen: catching up begins after
    -- the counter has rested, and ends only if it still does.
    seen_number bigint,
    seen_writer uuid,
    seen_time timestamptz,
    -- What an operator has to repair before catching up can go on. It was reported.
    fault text,
    CONSTRAINT stripe_contacts_pkey PRIMARY KEY (organization_id, integration_id),
    CONSTRAINT stripe_contacts_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT stripe_contacts_integration_fkey
        FOREIGN KEY (organization_id, integration_id) REFERENCES integrations (organization_id, id),
    CONSTRAINT stripe_contacts_catch_up_reason_check
        CHECK (catch_up_reason IN ('database_changed', 'silence', 'counter_ahead')),
    CONSTRAINT stripe_contacts_stage_check CHECK ((stage IS NULL) = (catch_up_reason IS NULL))
);

-- Every POST to Stripe that creates or changes something. A request is committed before it is first sent, and sent
-- again byte for byte under the same key (P2, P8). Confirmations of PaymentIntents are in payment_attempts.
CREATE TABLE stripe_requests (
    organization_id uuid NOT NULL,
    -- What the request creates or changes: 'customer', 'webhook_endpoint', 'checkout_session', 'payment_intent', …
    purpose text NOT NULL,
    -- Which one. Where a second execution matters, it is an id that the billing system or Stripe has assigned, such as
    -- the invoice's, and not that of a row: a row that is made anew sends the old key.
    name text NOT NULL,
    -- Incremented when another key is used.
    generation integer NOT NULL,
    -- A function of installation, organization, purpose, name and generation; of a default method, a new one each time.
    idempotency_key text NOT NULL,
    -- Form-encoded.
    body text NOT NULL,
    -- Since when Stripe is known to replay a stored 500: this key will never bring another answer.
    dead_key_time timestamptz,
    -- Since when Stripe is known to have received this key with another body: what that created is looked up.
    taken_key_time timestamptz,
    create_time timestamptz NOT NULL,
    -- When Stripe gave its final answer. The next request gets another generation and key.
    finish_time timestamptz,
    CONSTRAINT stripe_requests_pkey PRIMARY KEY (organization_id, purpose, name, generation),
    CONSTRAINT stripe_requests_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id)
);

-- Stripe's rate limits, shared by all replicas: one row for each of Stripe's buckets that was used lately. No tenant's
-- rows, and no tenant sees them: several organizations may share a Stripe account.
CREATE TABLE stripe_budgets (
    provider_account_id text NOT NULL,
    livemode boolean NOT NULL,
    -- Method and route, such as 'POST /v1/payment_intents'. Empty: the account's own bucket, which every call uses.
    endpoint text NOT NULL,
    -- Calls up to this time are reserved; the next call may start then. In the time of Paybridge's clock.
    next_time timestamptz NOT NULL,
    -- Calls per second, as of `rate_time`. It recovers to the limit by itself.
    rate double precision NOT NULL,
    -- When Stripe last refused a call of this bucket with 429, in the time of Paybridge's clock.
    rate_time timestamptz NOT NULL,
    CONSTRAINT stripe_budgets_pkey PRIMARY KEY (provider_account_id, livemode, endpoint),
    CONSTRAINT stripe_budgets_rate_check CHECK (rate > 0)
) WITH (fillfactor = 50);
CREATE INDEX stripe_budgets_next_time_idx ON stripe_budgets (next_time);
