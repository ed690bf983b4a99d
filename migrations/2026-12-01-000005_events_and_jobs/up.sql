-- One row per organization: where its event log begins and ends. An event's position is assigned here, in the statement
-- that inserts the event, which is the last of its transaction. So positions follow commit order, without gaps (P5).
CREATE TABLE event_heads (
    organization_id uuid NOT NULL,
    -- Names this log. A log that takes its place has another one, because its positions are other events.
    log_id uuid NOT NULL,
    -- 0 before the first event.
    last_position bigint NOT NULL,
    -- The oldest position that is still kept; last_position + 1 while the log is empty.
    first_position bigint NOT NULL,
    CONSTRAINT event_heads_pkey PRIMARY KEY (organization_id),
    CONSTRAINT event_heads_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id)
) WITH (fillfactor = 50);

CREATE TABLE events (
    organization_id uuid NOT NULL,
    position bigint NOT NULL,
    id uuid NOT NULL,
    webhook_type text NOT NULL,
    -- {"<object_type>": {…}}
    payload jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (organization_id, position),
    CONSTRAINT events_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id)
);

-- Stripe's webhook events, each stored once. Partitioned by day of Stripe's own `created`, which is the same in every
-- repeat of an event: so it can be part of the key, and old days can be dropped whole.
CREATE TABLE deliveries (
    organization_id uuid NOT NULL,
    integration_id uuid NOT NULL,
    provider_event_id text NOT NULL,
    created timestamptz NOT NULL,
    event_type text NOT NULL,
    -- As received, without the values of client secrets (P9).
    body text NOT NULL,
    -- Read from the events list. Its objects are in the account's API version, so they are fetched instead of trusted.
    polled boolean NOT NULL,
    state text NOT NULL,
    -- Why it was ignored or parked.
    reason text,
    receive_time timestamptz NOT NULL,
    CONSTRAINT deliveries_pkey PRIMARY KEY (organization_id, integration_id, provider_event_id, created),
    CONSTRAINT deliveries_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id),
    CONSTRAINT deliveries_state_check CHECK (state IN ('received', 'applied', 'ignored', 'parked'))
) PARTITION BY RANGE (created);

-- Holds what is too old, or too far ahead, for a partition of its own.
CREATE TABLE deliveries_default PARTITION OF deliveries DEFAULT;

-- Creates the partitions of these days. Skips a day that already has rows in the default partition.
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
                -- A partition has no policies: by its own name it shows no rows (P10).
                EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', partition);
            EXCEPTION WHEN check_violation OR duplicate_table THEN
                NULL;
            END;
        END IF;
        day := day + 1;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION ensure_delivery_partitions(date, date) FROM PUBLIC;

-- Drops the partitions of the days before `first_kept_day`, and deletes such rows from the default partition.
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
REVOKE ALL ON FUNCTION drop_delivery_partitions(date) FROM PUBLIC;

-- Durable work: one row per kind and object. A job holds ids only; what is to be done is read from the object.
CREATE TABLE jobs (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    kind text NOT NULL,
    object_id uuid NOT NULL,
    -- For a delivery, Stripe's event id; for a refund, Stripe's refund id; otherwise empty.
    object_key text NOT NULL,
    -- For a delivery, Stripe's `created`, which finds its partition.
    object_time timestamptz,
    -- In the time of Paybridge's clock.
    run_at timestamptz NOT NULL,
    -- Whether `run_at` has come since the job was last scheduled. Workers make scheduled jobs due, a bounded number at
    -- a time; a job that is enqueued to run now is due from the start.
    due boolean NOT NULL DEFAULT false,
    -- Incremented whenever the job is enqueued again. If it is greater than when the job was leased, the job runs
    -- again.
    generation bigint NOT NULL,
    -- Failed runs since the last successful one.
    failures integer NOT NULL,
    -- Those of `failures` whose cause is the job's own: Stripe and the database were available, and no limit was hit.
    own_failures integer NOT NULL DEFAULT 0,
    last_error text,
    -- When the job was parked, in the time of Paybridge's clock. Nobody leases a parked job until an operator or a
    -- caller requests it again. `last_error` holds the reason.
    park_time timestamptz,
    -- Incremented by every lease. A worker with another epoch has lost the job and writes nothing (P8).
    lease_epoch bigint NOT NULL,
    -- In the database's own time, so that replicas whose clocks differ agree on it.
    lease_until timestamptz,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_object_key UNIQUE (organization_id, kind, object_id, object_key),
    CONSTRAINT jobs_organization_fkey FOREIGN KEY (organization_id) REFERENCES organizations (id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
-- A job is scheduled, due, leased or parked. Each has an index that holds nothing else: the wanted job is at the
-- index's head, whatever the table's statistics say.
CREATE INDEX jobs_due_idx ON jobs (organization_id, kind, run_at)
WHERE due AND lease_until IS NULL AND park_time IS NULL;
CREATE INDEX jobs_scheduled_idx ON jobs (run_at) WHERE NOT due AND lease_until IS NULL AND park_time IS NULL;
CREATE INDEX jobs_leased_idx ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX jobs_parked_idx ON jobs (organization_id, park_time) WHERE park_time IS NOT NULL;
-- Jobs that run at once when an API key is repaired.
CREATE INDEX jobs_failed_idx ON jobs (organization_id, id) WHERE failures > 0;

-- Work that runs at fixed intervals, once for all processes: whichever process moves `next_time` forward does it. No
-- tenant's rows.
CREATE TABLE timers (
    name text NOT NULL,
    -- In the time of Paybridge's clock.
    next_time timestamptz NOT NULL,
    CONSTRAINT timers_pkey PRIMARY KEY (name)
);
