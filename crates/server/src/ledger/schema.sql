CREATE TABLE IF NOT EXISTS meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS keys (
    id BIGINT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL UNIQUE,
    shown TEXT NOT NULL,
    created_unix_ms BIGINT NOT NULL,
    revoked_unix_ms BIGINT,
    requests_per_minute BIGINT,
    tokens_per_minute BIGINT,
    concurrent BIGINT,
    budget_nano BIGINT,
    spent_nano BIGINT NOT NULL,
    reserved_nano BIGINT NOT NULL,
    admin BIGINT NOT NULL DEFAULT 0
);
-- One row a request, made before any work is done for it. It is open until `ended_unix_ms` is set, which happens once
-- and moves its cost from its key's `reserved_nano` to `spent_nano` in the same transaction.
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY,
    key_id BIGINT NOT NULL REFERENCES keys (id),
    server BIGINT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    started_unix_ms BIGINT NOT NULL,
    ended_unix_ms BIGINT,
    outcome TEXT,
    reserved_tokens BIGINT NOT NULL,
    reserved_nano BIGINT NOT NULL,
    currency TEXT NOT NULL,
    price_hit_nano BIGINT NOT NULL,
    price_miss_nano BIGINT NOT NULL,
    price_output_nano BIGINT NOT NULL,
    hit_tokens BIGINT NOT NULL,
    miss_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cost_nano BIGINT NOT NULL,
    sequences BIGINT NOT NULL DEFAULT 1
);
CREATE INDEX IF NOT EXISTS requests_of_key ON requests (key_id, started_unix_ms);
CREATE INDEX IF NOT EXISTS requests_open ON requests (key_id) WHERE ended_unix_ms IS NULL;
