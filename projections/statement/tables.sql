-- One row per movement of posted points, with the balance after it; key order is history's order.
CREATE TABLE IF NOT EXISTS statement (
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    amount_upt bigint NOT NULL CHECK (amount_upt <> 0),
    balance_upt bigint NOT NULL CHECK (balance_upt >= 0),
    at_us bigint NOT NULL,
    event_id uuid NOT NULL,
    command_id uuid NOT NULL,
    shard smallint NOT NULL,
    request_id uuid,
    model text COLLATE "C",
    price_model text COLLATE "C",
    price_version bigint,
    basis text COLLATE "C",
    swept boolean NOT NULL,
    grant_kind text COLLATE "C",
    actor text COLLATE "C",
    explains_event_id uuid,
    PRIMARY KEY (stream, version)
);
-- Where each account stands: its open holds name the model, its totals the balance.
CREATE TABLE IF NOT EXISTS statement_accounts (
    stream text COLLATE "C" PRIMARY KEY,
    state text NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
