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
    state text NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
