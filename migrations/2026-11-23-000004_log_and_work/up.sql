-- One row an organization: where its log begins and ends. An event's position is taken here, in the statement that
-- inserts the event, last of all in its transaction: so positions are given in commit order, without a gap (P5).
CREATE TABLE event_heads (
    organization_id uuid NOT NULL CONSTRAINT event_heads_organization_fkey REFERENCES organizations,
    last_position bigint NOT NULL,
    -- The oldest position that is still kept; last_position + 1 while none is.
    first_position bigint NOT NULL,
    CONSTRAINT event_heads_pkey PRIMARY KEY (organization_id)
) WITH (fillfactor = 50);

CREATE TABLE events (
    organization_id uuid NOT NULL CONSTRAINT events_organization_fkey REFERENCES organizations,
    position bigint NOT NULL,
    id uuid NOT NULL,
    webhook_type text NOT NULL,
    -- {"<object_type>": {…}}
    payload jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (organization_id, position)
);

-- Stripe's webhooks, each stored once. Partitioned by day of Stripe's own `created`, which is the same in every repeat,
-- so that it can be part of the key and old days can be dropped whole.
CREATE TABLE deliveries (
    organization_id uuid NOT NULL CONSTRAINT deliveries_organization_fkey REFERENCES organizations,
    integration_id uuid NOT NULL,
    provider_event_id text NOT NULL,
    created timestamptz NOT NULL,
    event_type text NOT NULL,
    -- As it came, but for the values of its client secrets (P9).
    body text NOT NULL,
    -- Read from the events list: in the account's API version, so objects are fetched instead of trusted.
    polled boolean NOT NULL,
    state text NOT NULL
        CONSTRAINT deliveries_state_check CHECK (state IN ('received', 'applied', 'ignored', 'parked')),
    -- Why it was ignored or parked.
    reason text,
    receive_time timestamptz NOT NULL,
    CONSTRAINT deliveries_pkey PRIMARY KEY (organization_id, integration_id, provider_event_id, created)
) PARTITION BY RANGE (created);

-- Takes what is too old or too far ahead for a day of its own.
CREATE TABLE deliveries_default PARTITION OF deliveries DEFAULT;

-- P10: rows are reached through the parent and its policies; a partition has none, so by its own name it shows nothing.
ALTER TABLE deliveries_default ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- Makes the partitions of these days, and skips a day whose rows already lie in the default partition.
CREATE FUNCTION ensure_delivery_partitions(first_day date, last_day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
DECLARE
    day date := first_day;
    partition text;
BEGIN
    WHILE day <= last_day LOOP
        partition := 'deliveries_' || to_char(day, 'YYYYMMDD');
        IF to_regclass(partition) IS NULL THEN
            BEGIN
                EXECUTE format(
                    'CREATE TABLE %I PARTITION OF deliveries FOR VALUES FROM (%L) TO (%L)',
                    partition, day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00'
                );
                EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', partition);
            EXCEPTION WHEN check_violation OR duplicate_table THEN
                NULL;
            END;
        END IF;
        day := day + 1;
    END LOOP;
END
$$;

-- Drops the partitions of the days before `first_kept_day`, and such rows of the default partition.
CREATE FUNCTION drop_delivery_partitions(first_kept_day date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
DECLARE
    partition text;
    dropped integer := 0;
BEGIN
    FOR partition IN
        SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'deliveries'::regclass AND c.relname ~ '^deliveries_\d{8}$'
            AND to_date(right(c.relname, 8), 'YYYYMMDD') < first_kept_day
    LOOP
        EXECUTE format('DROP TABLE %I', partition);
        dropped := dropped + 1;
    END LOOP;
    DELETE FROM deliveries WHERE created < first_kept_day::timestamptz;
    RETURN dropped;
END
$$;

-- Durable work: one row for a kind and an object. It says what to look at, never what to do.
CREATE TABLE jobs (
    id uuid CONSTRAINT jobs_pkey PRIMARY KEY,
    organization_id uuid NOT NULL CONSTRAINT jobs_organization_fkey REFERENCES organizations,
    kind text NOT NULL,
    object_id uuid NOT NULL,
    -- For a delivery Stripe's event id; else empty.
    object_key text NOT NULL,
    -- For a delivery Stripe's `created`, which finds its partition.
    object_time timestamptz,
    -- In the time of Paybridge's clock.
    run_at timestamptz NOT NULL,
    -- How often it was asked for. More than when it was leased means: look again.
    asked bigint NOT NULL,
    failures integer NOT NULL,
    last_error text,
    -- Rises with every lease: a worker whose epoch is another has lost the job and writes nothing (P8).
    lease_epoch bigint NOT NULL,
    -- In the database's own time, so that replicas whose clocks differ agree on it.
    lease_until timestamptz,
    CONSTRAINT jobs_object_key UNIQUE (organization_id, kind, object_id, object_key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX jobs_run_at_idx ON jobs (run_at);
