-- One row per account: what it has, and the fold that says so.
CREATE TABLE IF NOT EXISTS balance (
    stream text COLLATE "C" PRIMARY KEY,
    person bigint NOT NULL,
    issued_upt bigint NOT NULL,
    charged_upt bigint NOT NULL,
    posted_upt bigint NOT NULL,
    held_upt bigint NOT NULL,
    available_upt bigint NOT NULL,
    shortfall_upt bigint NOT NULL,
    open_holds integer NOT NULL,
    version bigint NOT NULL,
    hash bytea NOT NULL,
    at_us bigint NOT NULL,
    state text NOT NULL,
    -- Of a subscription that has not been noted as over: its level, its end, and calls used by item.
    plan_level smallint,
    plan_until_us bigint,
    plan_used text
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX IF NOT EXISTS balance_plan_until ON balance (plan_until_us, stream)
    WHERE plan_until_us IS NOT NULL;
