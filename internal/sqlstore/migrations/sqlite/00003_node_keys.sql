-- +goose Up
-- Which master keys there are, so that another key under the same id is told from a forgery. A
-- fingerprint proves that two programs have the same key and reveals nothing of it.
CREATE TABLE master_keys (
    id            TEXT    NOT NULL PRIMARY KEY,
    fingerprint   TEXT    NOT NULL,
    signing_since INTEGER NOT NULL, -- since when rows are authenticated under it; 0 = never yet
    asked_at      INTEGER NOT NULL  -- when a rotation asked the nodes to have it
) STRICT;
