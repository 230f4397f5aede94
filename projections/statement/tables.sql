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
    key bigint,
    channel bigint,
    source text COLLATE "C",
    gift_type text COLLATE "C",
    plan_level integer,
    plan_version bigint,
    plan_months integer,
    credit_upt bigint,
    PRIMARY KEY (stream, version)
);
-- For an account at a time, and for all accounts in the order of time.
CREATE INDEX IF NOT EXISTS statement_of_account_by_time ON statement (stream, at_us, version);
CREATE INDEX IF NOT EXISTS statement_by_time ON statement (at_us, stream, version);
CREATE INDEX IF NOT EXISTS statement_by_request ON statement (request_id)
    WHERE request_id IS NOT NULL;
-- Where each account stands: its open holds name the model, its totals the balance.
CREATE TABLE IF NOT EXISTS statement_accounts (
    stream text COLLATE "C" PRIMARY KEY,
    state text NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
-- Swept requests, whose late usage does not say again for which key and model it is.
CREATE TABLE IF NOT EXISTS statement_swept (
    stream text COLLATE "C" NOT NULL,
    request_id uuid NOT NULL,
    key bigint NOT NULL,
    model text COLLATE "C" NOT NULL,
    PRIMARY KEY (stream, request_id)
);
