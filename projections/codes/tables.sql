-- One row per code, by its keyed hash: what it is worth, and who used it when.
CREATE TABLE IF NOT EXISTS codes (
    stream text COLLATE "C" PRIMARY KEY,
    batch text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    hint text COLLATE "C" NOT NULL,
    amount_upt bigint NOT NULL,
    actor text COLLATE "C" NOT NULL,
    issued_us bigint NOT NULL,
    expires_us bigint,
    person bigint,
    redeemed_us bigint,
    voided_us bigint,
    voided_by text COLLATE "C",
    version bigint NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS codes_in_order ON codes (issued_us, stream);
CREATE INDEX IF NOT EXISTS codes_of_batch ON codes (batch, issued_us, stream);
