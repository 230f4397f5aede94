-- Requests by the hour they ended in. `hour` counts hours since 1970 UTC; channel 0: none reached.
CREATE TABLE IF NOT EXISTS usage (
    stream text COLLATE "C" NOT NULL,
    hour integer NOT NULL,
    model text COLLATE "C" NOT NULL,
    channel bigint NOT NULL,
    key bigint NOT NULL,
    requests bigint NOT NULL,
    errors bigint NOT NULL,
    refused bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    charged_upt bigint NOT NULL,
    duration_ms bigint NOT NULL,
    plan_requests bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    PRIMARY KEY (stream, hour, model, channel, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX IF NOT EXISTS usage_by_hour ON usage (hour);
-- Requests without an outcome, and swept ones with what was counted for them: late usage may follow.
CREATE TABLE IF NOT EXISTS usage_waiting (
    stream text COLLATE "C" NOT NULL,
    request_id uuid NOT NULL,
    key bigint NOT NULL,
    model text COLLATE "C" NOT NULL,
    swept boolean NOT NULL,
    hour integer NOT NULL,
    channel bigint NOT NULL,
    errors bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    charged_upt bigint NOT NULL,
    duration_ms bigint NOT NULL,
    plan_requests bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    PRIMARY KEY (stream, request_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
