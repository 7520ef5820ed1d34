-- +goose Up
-- Times are microseconds since 1970, 0 = none. Flags are 0 or 1. Each keys and organizations
-- row is sealed; the revision that last changed it is part of what is sealed.
-- Text compares by bytes (collation "C"), as it does in SQLite.

CREATE TABLE meta (
    one          BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    revision     BIGINT NOT NULL,
    database_id  TEXT   COLLATE "C" NOT NULL,
    state_key_id TEXT   COLLATE "C" NOT NULL,
    state_box    BYTEA  NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE keys (
    id              TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    organization_id TEXT   COLLATE "C" NOT NULL,
    environment     TEXT   COLLATE "C" NOT NULL,
    digest          BYTEA  NOT NULL,
    hint            TEXT   COLLATE "C" NOT NULL,
    name            TEXT   COLLATE "C" NOT NULL,
    created_at      BIGINT NOT NULL,
    created_by      TEXT   COLLATE "C" NOT NULL,
    expires_in_days BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    state           TEXT   COLLATE "C" NOT NULL,
    revoked_at      BIGINT NOT NULL,
    revoke_reason   TEXT   COLLATE "C" NOT NULL,
    replaces        TEXT   COLLATE "C" NOT NULL,
    revision        BIGINT NOT NULL,
    seal_key_id     TEXT   COLLATE "C" NOT NULL,
    seal            BYTEA  NOT NULL
);
CREATE UNIQUE INDEX keys_digest ON keys (digest);
CREATE UNIQUE INDEX keys_one_active ON keys (organization_id) WHERE state = 'active';
CREATE UNIQUE INDEX keys_one_overlapping ON keys (organization_id) WHERE state = 'overlapping';
CREATE INDEX keys_revision ON keys (revision);
CREATE INDEX keys_newest ON keys (organization_id, created_at DESC, id DESC);
CREATE INDEX keys_state ON keys (organization_id, state);

CREATE TABLE organizations (
    id                     TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    name                   TEXT   COLLATE "C" NOT NULL,
    parent_organization_id TEXT   COLLATE "C" NOT NULL,
    payments_enabled       BIGINT NOT NULL,
    current_environment    TEXT   COLLATE "C" NOT NULL,
    active                 BIGINT NOT NULL,
    created_at             BIGINT NOT NULL,
    updated_at             BIGINT NOT NULL,
    revision               BIGINT NOT NULL,
    seal_key_id            TEXT   COLLATE "C" NOT NULL,
    seal                   BYTEA  NOT NULL
);
CREATE INDEX organizations_revision ON organizations (revision);
CREATE INDEX organizations_parent ON organizations (parent_organization_id);

CREATE TABLE key_uses (
    key_id       TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    last_used_at BIGINT NOT NULL
) WITH (fillfactor = 80);

CREATE TABLE rates (
    action   TEXT   COLLATE "C" NOT NULL,
    user_id  TEXT   COLLATE "C" NOT NULL,
    taken_at BIGINT NOT NULL,
    PRIMARY KEY (action, user_id)
);

CREATE TABLE replays (
    handle        BYTEA  NOT NULL PRIMARY KEY,
    fingerprint   BYTEA  NOT NULL,
    key_id        TEXT   COLLATE "C" NOT NULL,
    master_key_id TEXT   COLLATE "C" NOT NULL,
    salt          BYTEA  NOT NULL,
    sealed        BYTEA  NOT NULL, -- empty once erased
    created_at    BIGINT NOT NULL
);
CREATE INDEX replays_key ON replays (key_id);
CREATE INDEX replays_created ON replays (created_at);

CREATE TABLE audit (
    sequence        BIGINT NOT NULL PRIMARY KEY,
    at              BIGINT NOT NULL,
    actor           TEXT   COLLATE "C" NOT NULL,
    action          TEXT   COLLATE "C" NOT NULL,
    organization_id TEXT   COLLATE "C" NOT NULL,
    target_id       TEXT   COLLATE "C" NOT NULL,
    outcome         TEXT   COLLATE "C" NOT NULL,
    detail          TEXT   COLLATE "C" NOT NULL,
    remote_address  TEXT   COLLATE "C" NOT NULL,
    request_id      TEXT   COLLATE "C" NOT NULL,
    revision        BIGINT NOT NULL, -- of the write that changed the target; 0 = nothing changed
    hash            BYTEA  NOT NULL,
    seal_key_id     TEXT   COLLATE "C" NOT NULL,
    seal            BYTEA  NOT NULL
);
CREATE INDEX audit_target ON audit (target_id, revision);

CREATE TABLE nodes (
    node_id    TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    address    TEXT   COLLATE "C" NOT NULL,
    version    TEXT   COLLATE "C" NOT NULL,
    lease      BIGINT NOT NULL, -- microseconds
    applied    BIGINT NOT NULL,
    renewed_at BIGINT NOT NULL
) WITH (fillfactor = 50);

CREATE VIEW clock AS SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now;
