-- Epochs of the keys that wrap data keys, what Kafka is told of keys that are gone, and who was forgotten.

-- An epoch's secret, wrapped with the site's. Once it is deleted, what was wrapped in its time opens no more.
CREATE TABLE key_epochs (
    epoch bytea PRIMARY KEY CHECK (length(epoch) = 16),
    wrapped bytea NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published boolean NOT NULL DEFAULT false
);

-- A wrapped key names its epoch itself: `E`, 16 bytes of epoch, the sealed key. Others are wrapped by SECRET alone.
-- The reference keeps an epoch for as long as one key needs it.
ALTER TABLE data_keys ADD COLUMN wrap_epoch bytea GENERATED ALWAYS AS (
    CASE WHEN substring(wrapped FROM 1 FOR 1) = '\x45' THEN substring(wrapped FROM 2 FOR 16) END
) STORED REFERENCES key_epochs (epoch);
CREATE INDEX data_keys_wrap_epoch ON data_keys (wrap_epoch);

-- Either an account's data key or an epoch: it is gone, and Kafka's record of it must go too.
CREATE TABLE key_tombstones (
    account bigint,
    key_epoch integer,
    epoch bytea,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published boolean NOT NULL DEFAULT false,
    CHECK ((account IS NULL) = (key_epoch IS NULL) AND (account IS NULL) <> (epoch IS NULL)),
    UNIQUE NULLS NOT DISTINCT (account, key_epoch, epoch)
);
CREATE INDEX key_tombstones_unpublished ON key_tombstones (at) WHERE NOT published;

-- Accounts of which nothing is left to erase.
CREATE TABLE forgettings (
    account bigint PRIMARY KEY,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

DO $$
DECLARE app text := current_setting('suanpan.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON key_epochs, key_tombstones, forgettings TO %I', app);
    -- For VACUUM FULL: a deleted row's bytes would stay in the table's file.
    EXECUTE format('GRANT MAINTAIN ON key_epochs TO %I', app);
END $$;
