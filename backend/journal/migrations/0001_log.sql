-- The log, its streams and what guards them. Runs as the owner; `suanpan.app_role` names the application's role.

CREATE TABLE site (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    site_id uuid NOT NULL,
    epoch integer NOT NULL DEFAULT 1,
    read_only_reason text,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO site (site_id) VALUES (gen_random_uuid());

CREATE SEQUENCE entity_ids;

CREATE TABLE streams (
    stream text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL CHECK (version > 0),
    hash bytea NOT NULL CHECK (length(hash) = 32),
    last_xid xid8 NOT NULL,
    state bytea NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.1);
ALTER TABLE streams ALTER COLUMN state SET STORAGE EXTERNAL;

CREATE TABLE event_log (
    epoch integer NOT NULL,
    xid xid8 NOT NULL,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    event_id uuid NOT NULL,
    command_id uuid NOT NULL,
    topic text COLLATE "C" NOT NULL,
    shard smallint NOT NULL,
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    type text COLLATE "C" NOT NULL,
    schema smallint NOT NULL,
    at timestamptz NOT NULL,
    payload bytea NOT NULL,
    prev_hash bytea NOT NULL,
    hash bytea NOT NULL
) PARTITION BY RANGE (seq);
CREATE TABLE event_log_0 PARTITION OF event_log FOR VALUES FROM (MINVALUE) TO (100000000);
CREATE TABLE event_log_rest PARTITION OF event_log DEFAULT;
CREATE INDEX event_log_order ON event_log (epoch, xid, seq);
CREATE INDEX event_log_stream ON event_log (stream, version);

CREATE TABLE commands (
    command_id uuid PRIMARY KEY,
    body_hash bytea NOT NULL,
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL
);

CREATE TABLE leases (
    request_id uuid PRIMARY KEY,
    stream text COLLATE "C" NOT NULL,
    generation bigint NOT NULL DEFAULT 1,
    until timestamptz NOT NULL,
    progress text NOT NULL DEFAULT ''
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX leases_until ON leases (until);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER event_log_append_only BEFORE UPDATE OR DELETE ON event_log
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER event_log_no_truncate BEFORE TRUNCATE ON event_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION refuse_half_a_unit() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a unit could land only in part' USING ERRCODE = 'serialization_failure';
END $$;

-- Places and parked streams of consumers; `read` and `rebuild` hold what projections own.
CREATE TABLE consumer_places (
    consumer text COLLATE "C" NOT NULL,
    topic text COLLATE "C" NOT NULL,
    shard smallint NOT NULL,
    epoch integer NOT NULL,
    xid xid8 NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    events bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer, topic, shard)
) WITH (fillfactor = 50);
CREATE TABLE consumer_streams (
    consumer text COLLATE "C" NOT NULL,
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (consumer, stream)
) WITH (fillfactor = 70);
CREATE TABLE parked (
    consumer text COLLATE "C" NOT NULL,
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, stream)
);

-- The publisher's place and what it knows of the Kafka cluster it filled.
CREATE TABLE publisher (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    leader_epoch bigint NOT NULL DEFAULT 0,
    epoch integer NOT NULL DEFAULT 0,
    xid xid8 NOT NULL DEFAULT '0',
    seq bigint NOT NULL DEFAULT 0,
    cluster_id text NOT NULL DEFAULT '',
    topic_ids jsonb NOT NULL DEFAULT '{}'
);
INSERT INTO publisher DEFAULT VALUES;
CREATE TABLE publisher_heads (
    topic text COLLATE "C" NOT NULL,
    shard smallint NOT NULL,
    record_offset bigint NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (topic, shard)
);

-- Wrapped data keys: outside the chain, so that an account can be forgotten.
CREATE TABLE data_keys (
    account bigint NOT NULL,
    key_epoch integer NOT NULL DEFAULT 1,
    wrapped bytea NOT NULL,
    published boolean NOT NULL DEFAULT false,
    PRIMARY KEY (account, key_epoch)
);
CREATE INDEX data_keys_unpublished ON data_keys (account) WHERE NOT published;

CREATE SCHEMA read;
CREATE SCHEMA rebuild;

DO $$
DECLARE app text := current_setting('suanpan.app_role');
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', app);
    EXECUTE format('GRANT SELECT, INSERT ON event_log TO %I', app);
    EXECUTE format('GRANT SELECT, UPDATE ON site TO %I', app);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON streams TO %I', app);
    EXECUTE format('GRANT SELECT, INSERT ON commands TO %I', app);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON leases TO %I', app);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON consumer_places, consumer_streams, parked TO %I', app);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON publisher, publisher_heads, data_keys TO %I', app);
    EXECUTE format('GRANT SELECT, UPDATE, USAGE ON SEQUENCE entity_ids TO %I', app);
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA read, rebuild TO %I', app);
END $$;
