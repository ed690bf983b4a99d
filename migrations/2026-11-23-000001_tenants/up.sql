CREATE TABLE organizations (
    id uuid CONSTRAINT organizations_pkey PRIMARY KEY,
    name text NOT NULL,
    create_time timestamptz NOT NULL
);

CREATE TABLE api_tokens (
    organization_id uuid NOT NULL CONSTRAINT api_tokens_organization_fkey REFERENCES organizations,
    id uuid NOT NULL,
    name text NOT NULL,
    -- SHA-256 of the whole token. The token itself is shown once and never stored (P9).
    token_hash bytea NOT NULL,
    create_time timestamptz NOT NULL,
    revoke_time timestamptz,
    CONSTRAINT api_tokens_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT api_tokens_hash_key UNIQUE (organization_id, token_hash)
);

CREATE TABLE integrations (
    organization_id uuid NOT NULL CONSTRAINT integrations_organization_fkey REFERENCES organizations,
    id uuid NOT NULL,
    code text NOT NULL,
    name text NOT NULL,
    state text NOT NULL
        CONSTRAINT integrations_state_check
        CHECK (state IN ('connecting', 'active', 'paused', 'disconnecting', 'disconnected')),
    pause_reason text,
    livemode boolean NOT NULL,
    provider_account_id text,
    -- The key's last four characters, to tell keys apart.
    key_hint text NOT NULL,
    -- Sealed: key id, nonce and ciphertext, bound to this row and column (P9). Gone once it is disconnected.
    sealed_secret_key bytea,
    -- Sealed in the same way. Comes with the answer to the endpoint's creation, and only then.
    sealed_webhook_secret bytea,
    provider_endpoint_id text,
    -- Stripe's events list is read because it has no public address to post to.
    polls_events boolean NOT NULL,
    -- How far the list has been read: the `created` of the newest event seen. The next read overlaps.
    poll_time timestamptz,
    success_redirect_url text,
    supports_3ds boolean NOT NULL,
    relay_provider_events boolean NOT NULL,
    -- Disconnect without waiting for what moves.
    force_disconnect boolean NOT NULL DEFAULT false,
    -- Rises with every change; it is the etag.
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT integrations_pkey PRIMARY KEY (organization_id, id)
);

-- A code is free again once its integration is disconnected.
CREATE UNIQUE INDEX integrations_code_key ON integrations (organization_id, code) WHERE state <> 'disconnected';
-- One Stripe account is connected once: two endpoints would tell everything twice.
CREATE UNIQUE INDEX integrations_account_key ON integrations (organization_id, provider_account_id, livemode)
WHERE state <> 'disconnected';

-- Every POST to Stripe that makes something, as it is about to be sent: committed before the first send, and sent again
-- byte for byte under the same key (P2, P8). The confirms of payments have their own table.
CREATE TABLE frozen_requests (
    organization_id uuid NOT NULL CONSTRAINT frozen_requests_organization_fkey REFERENCES organizations,
    -- What it makes: 'customer', 'webhook_endpoint', 'checkout_session', 'payment_intent'.
    purpose text NOT NULL,
    object_id uuid NOT NULL,
    -- Rises when a key is too old to be used again (20 h), or its stored answer is a 500.
    number integer NOT NULL,
    idempotency_key text NOT NULL,
    body text NOT NULL,
    create_time timestamptz NOT NULL,
    -- When Stripe had given its word: whatever is asked for next is another request, under another key.
    finish_time timestamptz,
    CONSTRAINT frozen_requests_pkey PRIMARY KEY (organization_id, object_id, purpose, number)
);

-- What a caller's request_id stands for. Errors are not remembered. Kept for 30 days.
CREATE TABLE request_ids (
    organization_id uuid NOT NULL CONSTRAINT request_ids_organization_fkey REFERENCES organizations,
    request_id text NOT NULL,
    -- SHA-256 over the method and the request.
    body_hash bytea NOT NULL,
    resource_id uuid NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT request_ids_pkey PRIMARY KEY (organization_id, request_id)
);
CREATE INDEX request_ids_create_time_idx ON request_ids (create_time);
