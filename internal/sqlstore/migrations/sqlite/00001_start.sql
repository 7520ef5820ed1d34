-- +goose Up
-- Times are microseconds since 1970, 0 = none. Flags are 0 or 1. Each keys and organizations
-- row is sealed; the revision that last changed it is part of what is sealed.

CREATE TABLE meta (
    one          INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    revision     INTEGER NOT NULL,
    database_id  TEXT    NOT NULL,
    state_key_id TEXT    NOT NULL,
    state_box    BLOB    NOT NULL
) STRICT;

CREATE TABLE keys (
    id              TEXT    NOT NULL PRIMARY KEY,
    organization_id TEXT    NOT NULL,
    environment     TEXT    NOT NULL,
    digest          BLOB    NOT NULL,
    hint            TEXT    NOT NULL,
    name            TEXT    NOT NULL,
    created_at      INTEGER NOT NULL,
    created_by      TEXT    NOT NULL,
    expires_in_days INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    state           TEXT    NOT NULL,
    revoked_at      INTEGER NOT NULL,
    revoke_reason   TEXT    NOT NULL,
    replaces        TEXT    NOT NULL,
    revision        INTEGER NOT NULL,
    seal_key_id     TEXT    NOT NULL,
    seal            BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX keys_digest ON keys (digest);
CREATE UNIQUE INDEX keys_one_active ON keys (organization_id) WHERE state = 'active';
CREATE UNIQUE INDEX keys_one_overlapping ON keys (organization_id) WHERE state = 'overlapping';
CREATE INDEX keys_revision ON keys (revision);
CREATE INDEX keys_newest ON keys (organization_id, created_at DESC, id DESC);
CREATE INDEX keys_state ON keys (organization_id, state);

CREATE TABLE organizations (
    id                     TEXT    NOT NULL PRIMARY KEY,
    name                   TEXT    NOT NULL,
    parent_organization_id TEXT    NOT NULL,
    payments_enabled       INTEGER NOT NULL,
    current_environment    TEXT    NOT NULL,
    active                 INTEGER NOT NULL,
    created_at             INTEGER NOT NULL,
    updated_at             INTEGER NOT NULL,
    revision               INTEGER NOT NULL,
    seal_key_id            TEXT    NOT NULL,
    seal                   BLOB    NOT NULL
) STRICT;
CREATE INDEX organizations_revision ON organizations (revision);
CREATE INDEX organizations_parent ON organizations (parent_organization_id);

CREATE TABLE key_uses (
    key_id       TEXT    NOT NULL PRIMARY KEY,
    last_used_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE rates (
    action   TEXT    NOT NULL,
    user_id  TEXT    NOT NULL,
    taken_at INTEGER NOT NULL,
    PRIMARY KEY (action, user_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE replays (
    handle        BLOB    NOT NULL PRIMARY KEY,
    fingerprint   BLOB    NOT NULL,
    key_id        TEXT    NOT NULL,
    master_key_id TEXT    NOT NULL,
    salt          BLOB    NOT NULL,
    sealed        BLOB    NOT NULL, -- empty once erased
    created_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX replays_key ON replays (key_id);
CREATE INDEX replays_created ON replays (created_at);

CREATE TABLE audit (
    sequence        INTEGER NOT NULL PRIMARY KEY,
    at              INTEGER NOT NULL,
    actor           TEXT    NOT NULL,
    action          TEXT    NOT NULL,
    organization_id TEXT    NOT NULL,
    target_id       TEXT    NOT NULL,
    outcome         TEXT    NOT NULL,
    detail          TEXT    NOT NULL,
    remote_address  TEXT    NOT NULL,
    request_id      TEXT    NOT NULL,
    revision        INTEGER NOT NULL, -- of the write that changed the target; 0 = nothing changed
    hash            BLOB    NOT NULL,
    seal_key_id     TEXT    NOT NULL,
    seal            BLOB    NOT NULL
) STRICT;
CREATE INDEX audit_target ON audit (target_id, revision);

-- 0: the clock of SQLite is that of the process that has it open.
CREATE VIEW clock AS SELECT 0 AS now;
