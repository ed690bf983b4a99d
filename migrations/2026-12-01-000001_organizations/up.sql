-- The tenants. Every table of a tenant has `organization_id` first in its primary key.
CREATE TABLE organizations (
    id uuid NOT NULL,
    name text NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT organizations_pkey PRIMARY KEY (id)
);

CREATE TABLE api_tokens (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    -- SHA-256 of the whole token. The token itself is shown once and never stored (P9).
    token_hash bytea NOT NULL,
    create_time timestamptz NOT NULL,
    revoke_time timestamptz,
    CONSTRAINT api_tokens_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT api_tokens_hash_key UNIQUE (organization_id, token_hash),
    CONSTRAINT api_tokens_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id)
);

-- Which resource each caller's `request_id` created. Errors are not stored. Rows are kept for 30 days.
CREATE TABLE request_ids (
    organization_id uuid NOT NULL,
    request_id text NOT NULL,
    -- SHA-256 of the method and the request: the same id with another body is refused.
    body_hash bytea NOT NULL,
    resource_id uuid NOT NULL,
    -- Set by requests for a payment link, whose resource is the payment: the attempt that was created, or found, for
    -- this request. A repeated request returns that link, whatever links were created later.
    attempt_number integer,
    create_time timestamptz NOT NULL,
    CONSTRAINT request_ids_pkey PRIMARY KEY (organization_id, request_id),
    CONSTRAINT request_ids_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id)
);
CREATE INDEX request_ids_create_time_idx ON request_ids (create_time);
