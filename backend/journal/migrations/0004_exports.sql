-- Jobs that people asked for: exports of records, and audits. Operational, not history: neither is an event.

CREATE TABLE exports (
    id uuid PRIMARY KEY,
    owner bigint NOT NULL,
    person bigint,
    kind text COLLATE "C" NOT NULL,
    format text COLLATE "C" NOT NULL,
    filters jsonb NOT NULL,
    status text COLLATE "C" NOT NULL DEFAULT 'waiting'
        CHECK (status IN ('waiting', 'running', 'done', 'failed')),
    attempt integer NOT NULL DEFAULT 0,
    lease_until timestamptz,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    stale boolean NOT NULL DEFAULT false,
    error text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    expires_at timestamptz
);
COMMENT ON COLUMN exports.owner IS 'The person who asked for it, and alone may read it.';
COMMENT ON COLUMN exports.person IS 'Whose records it holds; null: everybody''s.';
CREATE INDEX exports_unfinished ON exports (created_at) WHERE status IN ('waiting', 'running');
CREATE INDEX exports_of_owner ON exports (owner, created_at);
CREATE INDEX exports_of_person ON exports (person) WHERE person IS NOT NULL;
CREATE INDEX exports_expiring ON exports (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE audit_runs (
    id uuid PRIMARY KEY,
    actor text NOT NULL,
    since_seal boolean NOT NULL,
    status text COLLATE "C" NOT NULL DEFAULT 'waiting'
        CHECK (status IN ('waiting', 'running', 'done', 'failed')),
    attempt integer NOT NULL DEFAULT 0,
    lease_until timestamptz,
    phase text NOT NULL DEFAULT '',
    done bigint NOT NULL DEFAULT 0,
    total bigint NOT NULL DEFAULT 0,
    notes text[] NOT NULL DEFAULT '{}',
    report jsonb,
    error text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz
);
-- One at a time.
CREATE UNIQUE INDEX audit_runs_unfinished ON audit_runs ((true)) WHERE status IN ('waiting', 'running');
CREATE INDEX audit_runs_by_time ON audit_runs (created_at);

-- Ids of events and their times grow with the log: a summary per range of pages finds both, and costs nothing to keep.
CREATE INDEX event_log_by_id ON event_log USING brin (event_id, at) WITH (autosummarize = on);

DO $$
DECLARE app text := current_setting('suanpan.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON exports, audit_runs TO %I', app);
END $$;
